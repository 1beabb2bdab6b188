"""The settings of a run's weight versions -> the sentences about what does not go together, or has no effect."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from shared.check_trainer import changed

if TYPE_CHECKING:
    from shared.run_settings import WeightSettings

OF_DELTAS = ("full_every",)
OF_FILES = ("folder", "local_folder", "keep_versions", *OF_DELTAS)


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
    if "engines_per_group" in given and weights.transport != "broadcast":
        yield (
            f'weights.engines_per_group has no effect with transport = "{weights.transport}"; leave it out, or write'
            ' transport = "broadcast"'
        )
    if 0 < weights.max_unavailable < weights.engines_per_group:
        yield (
            f"weights.engines_per_group is {weights.engines_per_group}, and a group is paused as a whole, though"
            f" max_unavailable is {weights.max_unavailable}; write engines_per_group = {weights.max_unavailable}"
        )
    if "://" in weights.local_folder:
        yield (
            f"weights.local_folder is {weights.local_folder!r}, and is to be a path of the engine's host; write the URL"
            " as weights.folder"
        )
