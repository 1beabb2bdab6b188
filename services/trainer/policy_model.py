"""Packed sequences -> log-probabilities and entropy of their trained tokens, by a Hugging Face causal LM."""

from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel

from services.trainer.packed_attention import plan_attention
from services.trainer.packing import PackedSequences
from services.trainer.scoring_model import ScoringModel
from services.trainer.token_scores import ChunkScores, Entropy, chunk_scores, head_of, token_scores
from shared.errors import RunRejected


class PolicyModel(ScoringModel):
    """A Hugging Face causal LM at one sampling temperature."""

    def __init__(self, causal_lm: PreTrainedModel, temperature: float, entropy: Entropy = Entropy.NONE) -> None:
        super().__init__()
        self.core = causal_lm
        self._temperature, self._entropy = temperature, Entropy(entropy)
        self.score: ChunkScores = chunk_scores
        """What makes log-probabilities of hidden states: as it is, or compiled."""
        self.are_logits_kept = False
        """For the backward pass, which otherwise makes them again."""

    def forward(self, packed: PackedSequences) -> tuple[torch.Tensor, torch.Tensor | None]:
        """log-softmax(logits / temperature) at the targets, and the entropy of softmax(logits / temperature).

        The first fields of Predictions, as a tuple: sharding hooks only see tensors in containers that torch knows.
        """
        hidden = self._hidden(packed).index_select(0, packed.rows)
        head, asked = head_of(self.core), (self._temperature, self._entropy)
        logprobs, entropy = token_scores(head, hidden, packed.targets, *asked, self.score, self.are_logits_kept)
        return logprobs, None if self._entropy is Entropy.NONE else entropy

    def check(self) -> None:
        """RunRejected if the model's logits are not made the way `forward` makes them."""
        device = self.core.device
        ids = torch.arange(4, device=device)[None]
        call = {"position_ids": ids, "packed": plan_attention([4]).to(device), "use_cache": False}
        with torch.no_grad():
            own = head_of(self.core).logits(self._decode(ids, call))
            theirs = cast(Any, self.core)(input_ids=ids, **call).logits[0]
        if not torch.allclose(own.float(), theirs.float(), rtol=1e-3, atol=1e-3):
            kind = type(self.core).__name__
            raise RunRejected(
                f"{kind} makes its logits in a way that packed training does not know; choose another model"
            )

    def _hidden(self, packed: PackedSequences) -> torch.Tensor:
        call = {"position_ids": packed.position_ids[None], "packed": packed.attention, "use_cache": False}
        return self._decode(packed.token_ids[None], call)

    def _decode(self, token_ids: torch.Tensor, call: dict[str, Any]) -> torch.Tensor:
        decoder = cast(nn.Module, self.core.get_decoder())
        return cast(torch.Tensor, decoder(input_ids=token_ids, **call).last_hidden_state[0])
