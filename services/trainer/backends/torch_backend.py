"""A Hugging Face causal LM on one device: packed micro-batches -> AdamW steps, named weights, state, export."""

import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers.core_model_loading import revert_weight_conversion

from services.trainer.backend import State
from services.trainer.backends.master_weights import MasterWeights
from services.trainer.losses.loss_totals import LossTotals
from services.trainer.losses.token_loss import LossFunction
from services.trainer.packing import MicroBatch
from services.trainer.policy_model import PolicyModel
from shared.errors import RunRejected

MOMENTS = ("exp_avg", "exp_avg_sq", "step")
TOKENIZER_FILES = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.jinja")


@dataclass(frozen=True, slots=True)
class AdamW:
    """Loshchilov and Hutter 2019, algorithm 2; the decay is for matrices, not for norms and biases."""

    betas: tuple[float, float]
    epsilon: float
    weight_decay: float
    max_grad_norm: float


class TorchBackend:
    """One process, one device. The same batches and seeds give the same bits on a CPU."""

    def __init__(self, model: PolicyModel, dtype: torch.dtype, adamw: AdamW, source: Path) -> None:
        """`model` is float32, on its device; `source` is the folder that it came from."""
        self._model = model.eval()  # no dropout: the engine samples without
        self._masters = MasterWeights(model.causal_lm, dtype)
        self._max_grad_norm, self._source = adamw.max_grad_norm, source
        masters = list(self._masters.named.values())
        decay, plain = [p for p in masters if p.ndim >= 2], [p for p in masters if p.ndim < 2]
        self._optimizer = torch.optim.AdamW(
            [{"params": decay, "weight_decay": adamw.weight_decay}, {"params": plain, "weight_decay": 0.0}],
            betas=adamw.betas,
            eps=adamw.epsilon,
            fused=True,
        )

    def train_step(
        self, micro_batches: list[MicroBatch], loss: LossFunction, learning_rate: float, seed: int
    ) -> dict[str, float]:
        """See Backend. A gradient that is not finite skips the step: the weights stay as they are."""
        torch.manual_seed(seed)
        self._masters.zero_grad()
        totals, device = LossTotals(), self._model.causal_lm.device
        for micro_batch in micro_batches:
            on_device = micro_batch.to(device)
            part = loss(self._model(on_device), on_device.trained)
            part.loss.backward()
            totals.add(part, len(micro_batch.rows))
        norm = float(nn.utils.clip_grad_norm_(self._masters.named.values(), self._max_grad_norm))
        if math.isfinite(norm):
            self._move(learning_rate)
        self._masters.zero_grad()
        return {**totals.metrics(), "grad_norm": norm, "step_skipped": float(not math.isfinite(norm))}

    def named_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """See Backend."""
        named = revert_weight_conversion(self._model.causal_lm, self._weights())
        yield from named.items()

    def state(self) -> State:
        """See Backend."""
        optimizer: dict[str, torch.Tensor] = {}
        for name, master in self._masters.named.items():
            moments: dict[str, torch.Tensor] = self._optimizer.state.get(master, {})
            optimizer |= {f"{moment}/{name}": value for moment, value in moments.items()}
            if master is not self._model.causal_lm.get_parameter(name):
                optimizer[f"master/{name}"] = master.detach()
        return {"weights": self._weights(), "optimizer": optimizer, "random": {"cpu": torch.get_rng_state()}}

    def load_state(self, state: State) -> None:
        """See Backend."""
        _copy_all(self._weights(), state["weights"])
        optimizer = state["optimizer"]
        for name, master in self._masters.named.items():
            if f"master/{name}" in optimizer:
                _copy_all({name: master.detach()}, {name: optimizer.pop(f"master/{name}")})
            moments = {moment: optimizer.pop(f"{moment}/{name}", None) for moment in MOMENTS}
            if moments["step"] is not None:
                self._optimizer.state[master] = {
                    moment: value.to(master.device) for moment, value in moments.items() if value is not None
                }
        _copy_all({}, optimizer)
        torch.set_rng_state(state["random"]["cpu"])

    def export(self, folder: Path) -> None:
        """See Backend."""
        self._model.causal_lm.save_pretrained(folder)
        for pattern in TOKENIZER_FILES:
            for file in self._source.glob(pattern):
                shutil.copy2(file, folder / file.name)

    def _move(self, learning_rate: float) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        self._optimizer.step()
        self._masters.round_to_model()

    def _weights(self) -> dict[str, torch.Tensor]:
        """Parameters and kept buffers, tied ones once."""
        model, kept = self._model.causal_lm, self._model.causal_lm.state_dict()
        named = {name: parameter.detach() for name, parameter in model.named_parameters()}
        buffers = {name: buffer for name, buffer in model.named_buffers() if name in kept}
        return {**named, **buffers}


@torch.no_grad()
def _copy_all(targets: dict[str, torch.Tensor], sources: dict[str, torch.Tensor]) -> None:
    """Copy tensors by name; both sides must have the same names and shapes."""
    for name in sorted(targets.keys() ^ sources.keys()):
        side = "misses" if name in targets else "holds the unknown"
        raise RunRejected(f"the checkpoint {side} tensor {name}; it belongs to another model: remove its folder")
    for name, target in targets.items():
        if target.shape != sources[name].shape:
            raise RunRejected(
                f"the checkpoint's tensor {name} is {list(sources[name].shape)}, the model's {list(target.shape)}; "
                "it belongs to another model: remove its folder"
            )
        target.copy_(sources[name])
