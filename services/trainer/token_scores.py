"""Hidden states of trained positions -> log-probabilities and entropy; the logits of all are never held at once."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

CHUNK_ELEMENTS = {"cpu": 2**25, "cuda": 2**28}
"""Logits worked on at once; on a GPU many, as each chunk reads the head's weights and adds up their gradient."""
KEPT_CHUNK_ELEMENTS = 2**30
"""The same where all are kept anyway: what comes on top is the gradient of a chunk, 2 GiB in bfloat16."""
KEPT_ELEMENTS = 2**32
"""Logits that may be kept for the backward pass (8 GiB in bfloat16); of more, none are, and it makes them again."""
Scores = tuple[torch.Tensor, torch.Tensor]
"""Log-probabilities and entropies, [rows] float32 each; the latter empty if they are not asked for."""


class Entropy(StrEnum):
    """Whether the entropy of each distribution is worked out, and for what."""

    NONE = "none"
    METRIC = "metric"
    LOSS = "loss"


@dataclass(frozen=True, slots=True)
class LogitHead:
    """How a causal LM makes logits from hidden states."""

    output: nn.Module
    scale: float
    cap: float | None
    """Logits are squeezed into -cap .. cap by tanh (Gemma Team 2024, "Gemma 2", section 2)."""

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[rows, hidden] -> [rows, vocabulary], in the precision of the model."""
        made = cast(torch.Tensor, self.output(hidden))
        scaled = made if self.scale == 1.0 else made * self.scale
        return torch.tanh(scaled / self.cap) * self.cap if self.cap else scaled


def head_of(causal_lm: PreTrainedModel) -> LogitHead:
    """By the configuration's names for it."""
    config = cast(Any, causal_lm.config.get_text_config())
    scale = getattr(config, "logit_scale", 1.0) / getattr(config, "logits_scaling", 1.0)
    cap: float | None = getattr(config, "final_logit_softcapping", None)
    return LogitHead(cast(nn.Module, causal_lm.get_output_embeddings()), scale, cap)


def chunk_scores(
    head: LogitHead, hidden: torch.Tensor, targets: torch.Tensor, temperature: float, entropy: Entropy
) -> Scores:
    """Of softmax(logits / temperature), all rows at once.

    Args:
        hidden: [rows, hidden].
        targets: [rows] int64, the tokens whose log-probabilities are wanted.
    """
    logits = head.logits(hidden).float()
    if temperature != 1.0:
        # a division by 1 would keep the compiler from finding maximum and sum in one pass over the logits
        logits = logits / temperature
    logprobs = -functional.cross_entropy(logits, targets, reduction="none")
    if entropy is Entropy.NONE:
        return logprobs, logprobs.new_zeros(0)
    return logprobs, entropy_of(logits if entropy is Entropy.LOSS else logits.detach())


ChunkScores = Callable[[LogitHead, torch.Tensor, torch.Tensor, float, Entropy], Scores]


def token_scores(
    head: LogitHead,
    hidden: torch.Tensor,
    targets: torch.Tensor,
    temperature: float,
    entropy: Entropy,
    score: ChunkScores,
    keep: bool = False,
) -> Scores:
    """As `chunk_scores`, in as many chunks as memory asks for.

    Args:
        score: that function or its compiled form.
        keep: up to KEPT_ELEMENTS, keep the logits. Code that is not compiled would keep them in float32 too.
    """
    if len(hidden) <= 1:
        # no row, or one, would need compiled graphs of their own
        score = chunk_scores
    elements = len(hidden) * _vocabulary(head)
    is_kept = keep and elements <= KEPT_ELEMENTS
    chunks = -(-elements // (KEPT_CHUNK_ELEMENTS if is_kept else CHUNK_ELEMENTS[hidden.device.type]))
    if chunks <= 1:
        return score(head, hidden, targets, temperature, entropy)
    call = score if is_kept else partial(_again_in_backward, score)
    # split has one gradient for all its parts; tensor_split one as large as the whole for each, to be added up
    sizes = [len(part) for part in targets.tensor_split(chunks)]
    made = [
        call(head, part, wanted, temperature, entropy)
        for part, wanted in zip(hidden.split(sizes), targets.split(sizes), strict=True)
    ]
    logprobs, entropies = zip(*made, strict=True)
    return torch.cat(logprobs), torch.cat(entropies)


def entropy_of(logits: torch.Tensor) -> torch.Tensor:
    """H = log sum exp(l) - sum softmax(l) l, in nats; [rows]."""
    return torch.logsumexp(logits, -1) - (logits.softmax(-1) * logits).sum(-1)


def _vocabulary(head: LogitHead) -> int:
    return cast(torch.Tensor, head.output.weight).shape[0]


def _again_in_backward(function: ChunkScores, *arguments: object) -> Scores:
    return cast(Scores, checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False))
