"""Named parameters -> those of a block-fp8 checkpoint: some as fp8 with their scales, the others as they are."""

from collections.abc import Callable, Collection, Iterable, Iterator

import torch

from services.trainer.fp8_blocks import to_blocks
from services.trainer.learner import Learner
from shared.fp8_checkpoint import FP8, fp8_weights, scale_name
from shared.messages import TensorSpec
from shared.run_settings import WeightSettings

Named = tuple[str, torch.Tensor]


def published_weights(learner: Learner, weights: WeightSettings) -> Callable[[], Iterable[Named]]:
    """What makes the tensors of a version, whenever it is asked."""
    if weights.quantization == "none":
        return learner.named_tensors
    form = Fp8Form(weights.modules_to_not_convert)
    return lambda: form(learner.named_tensors())


class Fp8Form:
    """The form of one model's versions; which matrices it converts is decided once."""

    def __init__(self, not_converted: Collection[str]) -> None:
        """`not_converted`: modules that keep the model's type, beside those that the format leaves."""
        self._not_converted = not_converted
        self._names: frozenset[str] | None = None

    def __call__(self, named: Iterable[Named]) -> Iterator[Named]:
        """In the form of the checkpoint, one after the other.

        Raises:
            RunRejected: there is nothing that fp8 could hold.
        """
        if self._names is None:
            named = list(named)
            self._names = fp8_weights({name: t.shape for name, t in named}, self._not_converted)
        return quantised(named, self._names)


def quantised(named: Iterable[Named], names: Collection[str]) -> Iterator[Named]:
    """Those of `names` as fp8, each followed by its scales."""
    for name, tensor in named:
        if name not in names:
            yield name, tensor
            continue
        numbers, scales = to_blocks(tensor)
        yield name, numbers
        yield scale_name(name), scales


def as_announced(named: Iterable[Named], buckets: Iterable[Iterable[TensorSpec]]) -> Iterator[Named]:
    """In the form of a version that was announced with these buckets."""
    return quantised(named, {spec.name for bucket in buckets for spec in bucket if spec.dtype == FP8})
