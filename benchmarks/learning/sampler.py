"""A policy's weights and prompts -> answers with their log-probabilities: what an engine does, for tiny models."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM


@dataclass(frozen=True, slots=True)
class Answer:
    """The tokens up to the end, if it came, and the log-probability of each under the weights that sampled it."""

    token_ids: NDArray[np.int32]
    logprobs: NDArray[np.float32]
    is_ended: bool


class Sampler:
    """A copy of the model that is apart from the one that learns."""

    def __init__(self, folder: Path, end: int) -> None:
        self._model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
        self._end = end

    def take(self, named_tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Become a copy of these weights."""
        missing, unexpected = self._model.load_state_dict(dict(named_tensors), strict=False)
        assert not missing and not unexpected, f"the weights lack {missing} and hold the unknown {unexpected}"

    @torch.no_grad()
    def answer(self, prompts: NDArray[np.int32], longest: int, random: torch.Generator | None) -> list[Answer]:
        """One answer to each row; without a generator the likeliest tokens.

        Args:
            prompts: [rows, width], all of the same length.
            longest: tokens of an answer.
        """
        ids, said = torch.from_numpy(prompts).long(), list[torch.Tensor]()
        for _ in range(longest):
            scores = self._model(input_ids=ids, use_cache=False, logits_to_keep=1).logits[:, -1].log_softmax(-1)
            chosen = scores.argmax(-1, True) if random is None else torch.multinomial(scores.exp(), 1, generator=random)
            said.append(scores.gather(1, chosen))
            ids = torch.cat([ids, chosen], 1)
        tokens, logprobs = ids[:, prompts.shape[1] :].numpy().astype(np.int32), torch.cat(said, 1).numpy()
        return [self._cut(*row) for row in zip(tokens, logprobs, strict=True)]

    def _cut(self, tokens: NDArray[np.int32], logprobs: NDArray[np.float32]) -> Answer:
        ends = np.flatnonzero(tokens == self._end)
        length = int(ends[0]) + 1 if len(ends) else len(tokens)
        return Answer(tokens[:length], logprobs[:length], bool(len(ends)))
