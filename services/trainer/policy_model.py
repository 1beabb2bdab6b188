"""Packed sequences -> log-probabilities and entropy of their trained tokens; a big vocabulary's logits are never all held."""

from collections.abc import Callable
from enum import StrEnum
from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from services.trainer.packed_attention import plan_attention
from services.trainer.packing import PackedSequences
from shared.errors import RunRejected

CHUNK_ELEMENTS = 2**25
"""Logits held at once (128 MiB as float32); more are made chunk by chunk, and again in the backward pass."""


class Entropy(StrEnum):
    """Whether the entropy of each distribution is worked out, and for what."""

    NONE = "none"
    METRIC = "metric"
    LOSS = "loss"


class PolicyModel(nn.Module):
    """A Hugging Face causal LM at one sampling temperature."""

    def __init__(self, causal_lm: PreTrainedModel, temperature: float, entropy: Entropy = Entropy.NONE) -> None:
        super().__init__()
        self.core = causal_lm
        self._temperature, self._entropy = temperature, entropy

    def forward(self, packed: PackedSequences) -> tuple[torch.Tensor, torch.Tensor | None]:
        """log-softmax(logits / temperature) at the targets, and the entropy of softmax(logits / temperature).

        The first fields of Predictions, as a tuple: sharding hooks only see tensors in containers that torch knows.
        """
        hidden = self._hidden(packed)[packed.rows]
        rows = max(1, CHUNK_ELEMENTS // self.core.config.get_text_config().vocab_size)
        if len(hidden) <= rows:
            return self._asked(*self._score(hidden, packed.targets))
        scores = [
            cast(tuple[torch.Tensor, torch.Tensor], _again_in_backward(self._score, part, targets))
            for part, targets in zip(hidden.split(rows), packed.targets.split(rows), strict=True)
        ]
        logprobs, entropy = zip(*scores, strict=True)
        return self._asked(torch.cat(logprobs), torch.cat(entropy))

    def check(self) -> None:
        """RunRejected if the model's logits are not made the way `forward` makes them."""
        device = self.core.device
        ids = torch.arange(4, device=device)[None]
        call = {"position_ids": ids, "packed": plan_attention([4]), "use_cache": False}
        with torch.no_grad():
            own = self._logits(self._decode(ids, call))
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

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        logits = cast(torch.Tensor, cast(nn.Module, self.core.get_output_embeddings())(hidden))
        config = cast(Any, self.core.config.get_text_config())
        logits = logits * getattr(config, "logit_scale", 1.0) / getattr(config, "logits_scaling", 1.0)
        cap: float | None = getattr(config, "final_logit_softcapping", None)
        return torch.tanh(logits / cap) * cap if cap else logits

    def _asked(self, logprobs: torch.Tensor, entropy: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        return logprobs, None if self._entropy is Entropy.NONE else entropy

    def _score(self, hidden: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits = self._logits(hidden).float() / self._temperature
        logprobs = -functional.cross_entropy(logits, targets, reduction="none")
        if self._entropy is Entropy.NONE:
            return logprobs, logprobs.new_zeros(0)
        with torch.set_grad_enabled(self._entropy is Entropy.LOSS and torch.is_grad_enabled()):
            return logprobs, _entropy(logits)


def _entropy(logits: torch.Tensor) -> torch.Tensor:
    """H = log sum exp(l) - sum softmax(l) l, in nats; [rows]."""
    return torch.logsumexp(logits, -1) - (logits.softmax(-1) * logits).sum(-1)


def _again_in_backward(function: Callable[..., Any], *tensors: torch.Tensor) -> Any:
    return checkpoint(function, *tensors, use_reentrant=False, preserve_rng_state=False)
