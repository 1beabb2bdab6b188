"""A Hugging Face model on one device or sharded over ranks: packed micro-batches -> AdamW steps, state, export."""

import math
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from services.trainer.backend import State
from services.trainer.backends.adapt_layers import merged, without_adapters
from services.trainer.backends.adapter_files import ADAPTER, named_adapters, write_adapters
from services.trainer.backends.checkpoint_names import CheckpointNames, ModelTensors
from services.trainer.backends.master_weights import MasterWeights
from services.trainer.backends.shard_model import let_go, shard_model, whole
from services.trainer.losses.loss_totals import LossTotals
from services.trainer.losses.token_loss import LossFunction, Predictions
from services.trainer.model_files import tokenizer_files
from services.trainer.packing import MicroBatch, PackedSequences
from services.trainer.ranks import OneRank, Ranks
from services.trainer.scoring_model import ScoringModel, ask, on_cpu
from shared.errors import RunRejected

MOMENTS = ("exp_avg", "exp_avg_sq", "step")


@dataclass(frozen=True, slots=True)
class AdamW:
    """Loshchilov and Hutter 2019, algorithm 2; the decay is for matrices, not for norms and biases."""

    betas: tuple[float, float]
    epsilon: float
    weight_decay: float
    max_grad_norm: float
    offload: bool = False
    """Keep moments and float32 weights in the host's memory."""


class TorchBackend:
    """One device a rank. The same batches and seeds on as many ranks give the same bits on a CPU."""

    def __init__(
        self,
        model: ScoringModel,
        dtype: torch.dtype,
        adamw: AdamW,
        source: Path,
        ranks: Ranks | None = None,
        publish: str = "merged",
    ) -> None:
        """`model` is float32, on its device; `source` is the folder that it came from; `publish` as in LoraSettings."""
        self._model = model.eval()  # no dropout: the engine samples without
        self._ranks, self._dtype, self._source, self._publish = ranks or OneRank(), dtype, source, publish
        self._max_grad_norm, self._device = adamw.max_grad_norm, model.core.device
        if self._ranks.size > 1:
            shard_model(model, model.core, self._ranks.size, dtype, adamw.offload)
            self._masters = MasterWeights(model, torch.float32)
        else:
            self._masters = MasterWeights(model, dtype, adamw.offload)
        self._optimizer = _optimizer(list(self._masters.named.values()), adamw)
        self._core, self._kept = ModelTensors(model.core), ModelTensors(model, parameters=False)
        self._names = CheckpointNames(model.core)

    def predict(self, packed: list[PackedSequences]) -> list[Predictions]:
        """See Backend."""
        with torch.no_grad():
            said = [on_cpu(ask(self._model, part, self._device)) for part in packed]
        let_go(self._model)
        return said

    def train_step(
        self, micro_batches: list[MicroBatch], loss: LossFunction, learning_rate: float | None, seed: int
    ) -> dict[str, float]:
        """See Backend. The weights stay as they are if the gradient is not finite, or if no token is trained."""
        torch.manual_seed(seed)
        self._masters.zero_grad()
        totals = LossTotals()
        for micro_batch in micro_batches:
            on_device = micro_batch.to(self._device)
            part = loss(ask(self._model, on_device.packed, self._device), on_device.trained)
            part.loss.backward()
            totals.add(part, len(on_device.packed.rows))
        norm = float(whole(nn.utils.clip_grad_norm_(self._masters.named.values(), self._max_grad_norm)))
        computed = time.monotonic()
        # without a token the gradient is 0, by which weights would decay and moments fade
        if math.isfinite(norm) and learning_rate is not None and totals.trained_tokens(self._ranks):
            self._move(learning_rate)
        self._masters.zero_grad()
        moved = {"step_skipped": float(not math.isfinite(norm)), "seconds_optimizer": time.monotonic() - computed}
        return {**totals.metrics(self._ranks), "grad_norm": norm, **moved}

    def predict_untrained(self, packed: list[PackedSequences]) -> list[Predictions]:
        """What the model says without the adapters that are all that learns of it."""
        with without_adapters(self._model.core):
            return self.predict(packed)

    def named_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """See Backend. Adapters alone are on the CPU: they are small, and there engines keep and hash them."""
        core = self._model.core
        if self._publish == "adapter":
            learned = {name: whole(p.detach()) for name, p in core.named_parameters() if p.requires_grad}
            small = {name: tensor.to("cpu", self._dtype) for name, tensor in learned.items()}
            yield from named_adapters(core, small).items()
            return
        weights = {name: whole(tensor).to(self._dtype) for name, tensor in self._core.now().items()}
        yield from self._names.of(merged(core, weights)).items()

    def tensors(self) -> Iterator[torch.Tensor]:
        """See Backend."""
        yield from self._model.parameters()
        yield from self._masters.named.values()
        for held in self._optimizer.state.values():
            yield from held.values()

    def state(self) -> State:
        """See Backend. The weights are those in float32, so that any number of ranks has tensors of the same names.

        Of a model whose adapters learn, it is these alone.
        """
        masters = {name: master.detach() for name, master in self._masters.named.items()}
        moved = {f"{m}/{name}": self._optimizer.state[p][m] for name, p in self._masters.named.items() for m in MOMENTS}
        weights = {**self._kept.now(), **masters}
        return {"weights": weights, "optimizer": moved, "random": {"cpu": torch.get_rng_state()}}

    def load_state(self, state: State) -> None:
        """See Backend."""
        own = self.state()
        _copy_all(own["weights"], state["weights"])
        _copy_all(own["optimizer"], state["optimizer"])
        self._masters.round_to_model()
        torch.set_rng_state(state["random"]["cpu"])

    def export(self, folder: Path) -> None:
        """See Backend."""
        core = self._model.core
        weights = {name: whole(tensor).to("cpu", self._dtype) for name, tensor in self._core.now().items()}
        if self._ranks.rank:
            return
        core.save_pretrained(folder, state_dict=merged(core, weights))
        write_adapters(core, weights, self._source, folder / ADAPTER)
        for file in tokenizer_files(self._source):
            shutil.copy2(file, folder / file.name)

    def _move(self, learning_rate: float) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        self._optimizer.step()
        self._masters.round_to_model()
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)  # so that its seconds are its own


def _optimizer(masters: list[nn.Parameter], adamw: AdamW) -> torch.optim.AdamW:
    trained = [p for p in masters if p.requires_grad]
    decay, plain = [p for p in trained if p.ndim >= 2], [p for p in trained if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": adamw.weight_decay}, {"params": plain, "weight_decay": 0.0}],
        betas=adamw.betas,
        eps=adamw.epsilon,
        fused=True,
    )
    for master in masters:
        # the state that the first step would make, made at once: a checkpoint has the same tensors at every step
        step = torch.zeros((), dtype=torch.float32, device=master.device)
        optimizer.state[master] = {"step": step, **{m: torch.zeros_like(master.detach()) for m in MOMENTS[:2]}}
    return optimizer


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
