"""The settings of a run's weight versions -> the sentences about what does not go together, or has no effect."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from shared.check_trainer import changed

if TYPE_CHECKING:
    from shared.run_settings import RunSettings, WeightSettings

OF_DELTAS = ("full_every",)
OF_FILES = ("folder", "local_folder", "keep_versions", *OF_DELTAS)


KEPT = 'or memory = "kept", with which both keep their parts of the memory'


def turns_problems(run: "RunSettings") -> Iterator[str]:
    """What cannot be where trainer and engines take turns with the memory of a device, each with what to write."""
    weights, staleness = run.weights, run.rollout.max_staleness
    if weights.memory != "turns":
        return
    if weights.transport != "ipc":
        yield (
            'weights.memory is "turns", in which engines copy versions out of the memory of the trainer\'s machine, and'
            f' weights.transport is "{weights.transport}"; write transport = "ipc", or leave memory out'
        )
    if staleness:
        yield (
            f'weights.memory is "turns", in which no engine generates while the trainer trains, and'
            f" rollout.max_staleness is {staleness}, with which they would; write max_staleness = 0, {KEPT}"
        )
    if run.engine.update_mode == "in_place":
        yield (
            'weights.memory is "turns", in which the cache of requests in flight is given away, and engine.update_mode'
            f' is "in_place", which keeps it; write update_mode = "retract", "abort" or "drain", {KEPT}'
        )
    if weights.max_unavailable:
        yield (
            f'weights.max_unavailable is {weights.max_unavailable}, and with weights.memory = "turns" all engines wait'
            " while the trainer trains; leave it out"
        )
    if run.engine.server_args.get("enable_memory_saver", True) is not True:
        yield (
            'weights.memory is "turns", which needs engine.server_args.enable_memory_saver, and sets it; leave it out,'
            f" {KEPT}"
        )


def weights_problems(weights: "WeightSettings") -> Iterator[str]:
    """A sentence for each, with what to write instead; none for settings that go together."""
    given = changed(weights).split(", ")
    for name in OF_FILES:
        if name in given and weights.transport not in (("delta",) if name in OF_DELTAS else ("disk", "delta")):
            wanted = '"delta"' if name in OF_DELTAS else '"disk" or "delta"'
            yield (
                f'weights.{name} has no effect with transport = "{weights.transport}"; leave it out, or write'
                f" transport = {wanted}"
            )
    if "://" in weights.local_folder:
        yield (
            f"weights.local_folder is {weights.local_folder!r}, and is to be a path of the engine's host; write the URL"
            " as weights.folder"
        )
