"""A model that is asked and never trained: the reference, or a teacher."""

from collections.abc import Iterator

import torch

from services.trainer.backends.shard_model import let_go, shard_model
from services.trainer.backends.torch_backend import TorchBackend
from services.trainer.losses.token_loss import Predictions
from services.trainer.packing import PackedSequences
from services.trainer.ranks import Ranks
from services.trainer.scoring_model import ScoringModel, ask, on_cpu


class FrozenModel:
    """Sharded over the ranks like the model that learns; without gradients and without an optimizer."""

    def __init__(self, model: ScoringModel, dtype: torch.dtype, ranks: Ranks, offload: bool) -> None:
        """`model` is float32, on its device; `offload` keeps it in the host's memory while it is not asked."""
        self._device = model.core.device
        self._model = model.eval().requires_grad_(False)
        self._is_sharded = ranks.size > 1
        if self._is_sharded:
            shard_model(model, model.core, ranks.size, dtype, offload)
        else:
            for parameter in model.parameters():  # no buffers: frequencies of rotary positions are not to be rounded
                parameter.data = parameter.data.to(dtype)
        self._moves = offload and not self._is_sharded and self._device.type != "cpu"
        if self._moves:
            self._model.to("cpu")

    def predict(self, packed: list[PackedSequences]) -> list[Predictions]:
        """See Predictor."""
        if self._moves:
            self._model.to(self._device)
        with torch.no_grad():
            said = [on_cpu(ask(self._model, part, self._device)) for part in packed]
        let_go(self._model)
        if self._moves:
            self._model.to("cpu")
        return said

    def tensors(self) -> Iterator[torch.Tensor]:
        """All that takes memory between steps."""
        yield from self._model.parameters()

    def weights(self) -> dict[str, torch.Tensor]:
        """By parameter name; references."""
        return {name: parameter.detach() for name, parameter in self._model.named_parameters()}

    @torch.no_grad()
    def take(self, weights: dict[str, torch.Tensor]) -> None:
        """Become a copy of a model of the same shape, sharded alike."""
        for name, own in self.weights().items():
            own.copy_(weights[name])


class UntrainedPolicy:
    """The reference of a policy of which only adapters learn: the same weights, asked without them."""

    def __init__(self, policy: TorchBackend) -> None:
        self._policy = policy

    def predict(self, packed: list[PackedSequences]) -> list[Predictions]:
        """See Predictor."""
        return self._policy.predict_untrained(packed)
