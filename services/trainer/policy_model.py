"""A packed micro-batch -> log-probabilities of its trained tokens; a big vocabulary's logits are never all held."""

from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from services.trainer.packed_attention import plan_attention
from services.trainer.packing import MicroBatch
from shared.errors import RunRejected

CHUNK_ELEMENTS = 2**25
"""Logits held at once (128 MiB as float32); more are made chunk by chunk, and again in the backward pass."""


class PolicyModel(nn.Module):
    """A Hugging Face causal LM at one sampling temperature."""

    def __init__(self, causal_lm: PreTrainedModel, temperature: float) -> None:
        super().__init__()
        self.causal_lm = causal_lm
        self._temperature = temperature

    def forward(self, batch: MicroBatch) -> torch.Tensor:
        """[trained] float32: log-softmax(logits / temperature) at the targets."""
        hidden = self._hidden(batch)[batch.rows]
        rows = max(1, CHUNK_ELEMENTS // self.causal_lm.config.get_text_config().vocab_size)
        if len(hidden) <= rows:
            return self._score(hidden, batch.targets)
        scores = [
            cast(torch.Tensor, checkpoint(self._score, part, targets, use_reentrant=False, preserve_rng_state=False))
            for part, targets in zip(hidden.split(rows), batch.targets.split(rows), strict=True)
        ]
        return torch.cat(scores)

    def check(self) -> None:
        """RunRejected if the model's logits are not made the way `forward` makes them."""
        device = self.causal_lm.device
        ids = torch.arange(4, device=device)[None]
        call = {"position_ids": ids, "packed": plan_attention([4]), "use_cache": False}
        with torch.no_grad():
            own = self._logits(self._decode(ids, call))
            theirs = cast(Any, self.causal_lm)(input_ids=ids, **call).logits[0]
        if not torch.allclose(own.float(), theirs.float(), rtol=1e-3, atol=1e-3):
            kind = type(self.causal_lm).__name__
            raise RunRejected(
                f"{kind} makes its logits in a way that packed training does not know; choose another model"
            )

    def _hidden(self, batch: MicroBatch) -> torch.Tensor:
        call = {"position_ids": batch.position_ids[None], "packed": batch.attention, "use_cache": False}
        return self._decode(batch.token_ids[None], call)

    def _decode(self, token_ids: torch.Tensor, call: dict[str, Any]) -> torch.Tensor:
        decoder = cast(nn.Module, self.causal_lm.get_decoder())
        return cast(torch.Tensor, decoder(input_ids=token_ids, **call).last_hidden_state[0])

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        logits = cast(torch.Tensor, cast(nn.Module, self.causal_lm.get_output_embeddings())(hidden))
        config = cast(Any, self.causal_lm.config.get_text_config())
        logits = logits * getattr(config, "logit_scale", 1.0) / getattr(config, "logits_scaling", 1.0)
        cap: float | None = getattr(config, "final_logit_softcapping", None)
        return torch.tanh(logits / cap) * cap if cap else logits

    def _score(self, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        logits = self._logits(hidden).float() / self._temperature
        return -functional.cross_entropy(logits, targets, reduction="none")
