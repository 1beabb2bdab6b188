"""The settings of a run's weight versions -> the sentences about what does not go together, or has no effect."""

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from shared.check_trainer import changed

if TYPE_CHECKING:
    from shared.run_settings import RunSettings, WeightSettings

OVERRIDE = "json_model_override_args"
"""The argument of SGLang in which an engine is told of the format of its versions, beside what a run writes there."""
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
            ' or write memory = "kept", with which both keep their parts of the memory'
        )


def weights_problems(weights: "WeightSettings") -> Iterator[str]:
    """A sentence for each, with what to write instead; none for settings that go together."""
    given = changed(weights).split(", ")
    for name in OF_FILES:
        if name in given and weights.transport not in (("delta",) if name in OF_DELTAS else ("disk", "delta")):
            wanted = '"delta"' if name in OF_DELTAS else '"disk" or "delta"'
            yield (
                f'weights.{name} has no effect with transport = "{weights.transport}"; leave it out (of a branch:'
                f" write {_default(weights, name)}, as if it were), or write transport = {wanted}"
            )
    if "engines_per_group" in given and weights.transport != "broadcast":
        yield (
            f'weights.engines_per_group has no effect with transport = "{weights.transport}"; leave it out (of a'
            f' branch: write {_default(weights, "engines_per_group")}, as if it were), or write transport = "broadcast"'
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


def _is_object(text: Any) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (TypeError, ValueError):
        return False


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
    override = given.get(OVERRIDE, "{}")
    if not _is_object(override):
        yield (
            f"engine.server_args.{OVERRIDE} is {override!r}; write the text of a JSON object, such as"
            """ '{"max_position_embeddings": 4096}'"""
        )
    if run.engine.device == "cpu":
        yield 'weights.quantization is "fp8", which engines serve on GPUs only; write quantization = "none"'


def _default(weights: "WeightSettings", name: str) -> str:
    return json.dumps(type(weights).model_fields[name].default)
