"""Named parameters -> those of a block-fp8 checkpoint: some as fp8 with their scales, the others as they are."""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

import torch

from services.trainer.fp8_blocks import to_blocks
from services.trainer.learner import Learner
from shared.fp8_checkpoint import BLOCK, FP8, fp8_weights, scale_name
from shared.messages import TensorSpec
from shared.run_settings import WeightSettings

Named = tuple[str, torch.Tensor]
TOGETHER = 2**25
"""Numbers of small matrices that are quantised at once: one by one, kernels take longer to start than to run."""


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
    """Those of `names` as fp8, with their scales; small ones wait for others of as many columns."""
    waiting: dict[int, list[Named]] = {}
    for name, tensor in named:
        if name not in names:
            yield name, tensor
            continue
        rows, columns = tensor.shape
        waiting.setdefault(columns, []).append((name, tensor))
        if rows % BLOCK or sum(each.numel() for _, each in waiting[columns]) >= TOGETHER:
            yield from _quantised_together(waiting.pop(columns))
    for group in waiting.values():
        yield from _quantised_together(group)


def _quantised_together(group: Sequence[Named]) -> Iterator[Named]:
    """Matrices one below the other; those before the last end with a whole block."""
    tensors = [tensor for _, tensor in group]
    numbers, scales = to_blocks(torch.cat(tensors) if len(tensors) > 1 else tensors[0])
    rows = [tensor.shape[0] for tensor in tensors]
    parts = zip(numbers.split(rows), scales.split([-(-count // BLOCK) for count in rows]), strict=True)
    for (name, _), (own, of_own) in zip(group, parts, strict=True):
        yield name, own
        yield scale_name(name), of_own


def as_announced(named: Iterable[Named], buckets: Iterable[Iterable[TensorSpec]]) -> Iterator[Named]:
    """In the form of a version that was announced with these buckets."""
    return quantised(named, {spec.name for bucket in buckets for spec in bucket if spec.dtype == FP8})
