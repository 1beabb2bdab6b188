"""The settings of a run's weight versions -> the sentences about what does not go together, or has no effect."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from shared.check_trainer import changed

if TYPE_CHECKING:
    from shared.run_settings import RunSettings, WeightSettings

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


def quantization_problems(run: "RunSettings") -> Iterator[str]:
    """The same about versions in fp8: what model and engine have to be like."""
    weights, given = run.weights, run.engine.server_args
    asked, loads = given.get("quantization"), given.get("load_format", "dummy")
    if weights.quantization == "none":
        if weights.modules_to_not_convert:
            yield (
                'weights.modules_to_not_convert has no effect with quantization = "none"; leave it out, or write'
                ' quantization = "fp8"'
            )
        if asked is not None:
            yield (
                f"engine.server_args.quantization is {asked!r}, and a quantised engine takes no versions that are not;"
                ' leave it out, or write weights.quantization = "fp8"'
            )
        return
    if run.model.dtype != "bfloat16":
        yield f'weights.quantization is "fp8", and model.dtype is {run.model.dtype}; write model.dtype = "bfloat16"'
    if asked not in (None, "fp8"):
        yield f'weights.quantization is "fp8", and engine.server_args.quantization is {asked!r}; leave that out'
    if loads != "dummy":
        yield (
            f'engine.server_args.load_format is {loads!r}, and with weights.quantization = "fp8" an engine has'
            " nothing to load before version 0; leave it out"
        )
    if run.engine.device == "cpu":
        yield 'weights.quantization is "fp8", which engines serve on GPUs only; write quantization = "none"'
