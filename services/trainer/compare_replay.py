"""What was recorded of a step and what came out of training it again -> where they differ, bit by bit."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from services.trainer.backend import State
from services.trainer.quantise_weights import as_announced
from services.trainer.weight_hashes import checksum
from shared.messages import WeightVersion

MACHINE = ("seconds_", "critic_seconds_", "tokens_per_second", "mfu", "gpu_memory_")
"""Metrics that tell of the machine and not of the step."""
COMPARED = ("weights", "optimizer")
"""Files of a checkpoint that hold what a step changes."""

Pair = tuple[float | None, float | None]
"""(recorded, replayed); None: there is no such number, or it is not finite."""


@dataclass(frozen=True, slots=True)
class WeightCheck:
    """The replayed state against one record of it."""

    against: str
    """checkpoint or published version."""
    equal: bool
    tensors: int
    """How many tensors were compared."""
    different: list[str]
    """Names of the first that differ."""
    largest_difference: float
    """Of any element of the weights; 0 where only a checksum is known."""


NAMES_SHOWN = 3


def of_the_step(metrics: Mapping[str, float]) -> dict[str, float]:
    """The metrics that are the same on every machine of a kind."""
    return {name: value for name, value in metrics.items() if not name.startswith(MACHINE)}


def differing_metrics(recorded: Mapping[str, float], replayed: Mapping[str, float]) -> dict[str, Pair]:
    """Every number that training computed and that is not the same, to the last bit."""
    ours = {name: value for name, value in replayed.items() if math.isfinite(value)}
    names = [name for name in replayed if ours.get(name) != recorded.get(name)]
    return {name: (recorded.get(name), ours.get(name)) for name in names}


def not_compared(recorded: Mapping[str, float], replayed: Mapping[str, float]) -> list[str]:
    """Recorded numbers that tell of the step and that training does not compute from the step alone."""
    return sorted(name for name in recorded if name not in replayed and not name.startswith(MACHINE))


@torch.no_grad()
def against_checkpoint(recorded: State, replayed: State) -> WeightCheck:
    """Weights and optimizer against those of a checkpoint."""
    pairs = list(_pairs(recorded, replayed))
    different = [name for name, theirs, ours in pairs if not _same_bits(theirs, ours)]
    weights = [(theirs, ours) for name, theirs, ours in pairs if name.startswith("weights/")]
    largest = max((_difference(theirs, ours) for theirs, ours in weights), default=0.0)
    return WeightCheck("checkpoint", not different, len(pairs), different[:NAMES_SHOWN], largest)


def against_version(announced: WeightVersion, named: Mapping[str, torch.Tensor]) -> WeightCheck:
    """Weights against the checksum that was published with them."""
    order = [spec.name for bucket in announced.buckets for spec in bucket]
    published = dict(as_announced(named.items(), announced.buckets))
    equal = set(order) == set(published) and checksum(published, announced.engine_device) == announced.checksum
    return WeightCheck("published version", equal, len(order), [], 0.0)


def _pairs(recorded: State, replayed: State) -> Iterator[tuple[str, torch.Tensor | None, torch.Tensor | None]]:
    for file in COMPARED:
        theirs, ours = recorded.get(file, {}), replayed.get(file, {})
        for name in sorted(theirs.keys() | ours.keys()):
            yield f"{file}/{name}", theirs.get(name), ours.get(name)


def _same_bits(theirs: torch.Tensor | None, ours: torch.Tensor | None) -> bool:
    if theirs is None or ours is None or theirs.dtype != ours.dtype or theirs.shape != ours.shape:
        return False
    return torch.equal(_bits(theirs), _bits(ours))


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8)


def _difference(theirs: torch.Tensor | None, ours: torch.Tensor | None) -> float:
    if theirs is None or ours is None or theirs.shape != ours.shape:
        return math.inf
    return float((theirs.double().cpu() - ours.double().cpu()).abs().max()) if theirs.numel() else 0.0
