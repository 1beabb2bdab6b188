"""A run whose versions are in fp8 -> what an engine is launched with for them, or what is wrong with one that runs."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from shared.check_weights import OVERRIDE
from shared.errors import RunRejected
from shared.fp8_checkpoint import BLOCK, fp8_weights, is_converted, quantization_config
from shared.run_settings import ModelSettings, WeightSettings
from shared.safetensors_file import shapes_in

CONFIG = "quantization_config"


def fp8_arguments(model: ModelSettings, given: dict[str, Any], weights: WeightSettings) -> dict[str, Any]:
    """Fields of ServerArgs by which SGLang makes room for fp8 and loads nothing: version 0 comes before any request.

    Args:
        given: those of the run.

    Raises:
        RunRejected: the model has nothing that fp8 could hold, or its files do not say what they hold.
    """
    shapes = _shapes(model)
    converted = fp8_weights(shapes, weights.modules_to_not_convert)
    override = {**json.loads(given.get(OVERRIDE, "{}")), CONFIG: quantization_config(converted, shapes)}
    return {"load_format": "dummy", OVERRIDE: json.dumps(override)}


def quantization_problems(
    server: dict[str, Any], about: dict[str, Any], model: ModelSettings, weights: WeightSettings
) -> Iterator[str]:
    """Why an engine cannot take versions of this form, each as the end of a sentence that begins with its address.

    An engine whose model lies on another host may not say how it is quantised. Then its hashes will.
    """
    config, by_itself = _served(server, about), server.get("quantization")
    if config is not None and not config and by_itself:
        yield (
            f"quantises its model by itself (--quantization {by_itself}), and would take no versions; start it without"
            " that argument"
        )
    elif weights.quantization == "none":
        if method := (config or {}).get("quant_method", by_itself):
            yield f'serves weights in {method}, and weights.quantization is "none"; start it with model.path'
    elif config is not None:
        yield from _unlike(config, model, weights)


def _unlike(config: dict[str, Any], model: ModelSettings, weights: WeightSettings) -> Iterator[str]:
    instead = f"start it with the folder that `sluice quantize {model.path} FOLDER` writes"
    if not config:
        yield f'serves weights that are not quantised, and weights.quantization is "fp8"; {instead}'
    elif config.get("quant_method") != "fp8" or config.get("weight_block_size") != [BLOCK, BLOCK]:
        found = f"{config.get('quant_method')}, in blocks of {config.get('weight_block_size')}"
        yield f"serves weights in {found}, and versions are in fp8 in blocks of {BLOCK} x {BLOCK}; {instead}"
    else:
        shapes = _shapes(model)
        ours = fp8_weights(shapes, weights.modules_to_not_convert)
        theirs = config.get("modules_to_not_convert") or config.get("ignored_layers") or []
        if kept := sorted(name for name in ours if not is_converted(name, theirs)):
            module = kept[0].removesuffix(".weight")
            yield (
                f"keeps {len(kept)} matrices as they are that versions have in fp8, such as {module}; write them as"
                f" weights.modules_to_not_convert, or {instead}"
            )
        bare = fp8_weights(shapes) - ours
        if more := sorted(name for name in bare if is_converted(name, theirs)):
            yield (
                f"has {len(more)} matrices in fp8 that weights.modules_to_not_convert keeps, such as"
                f" {more[0].removesuffix('.weight')}; take them out of it, or {instead} with --keep"
            )


def _served(server: dict[str, Any], about: dict[str, Any]) -> dict[str, Any] | None:
    """The quantization_config of what an engine serves; empty if it has none, and None if that cannot be told here."""
    override = cast(dict[str, Any], json.loads(server.get(OVERRIDE) or "{}"))
    if CONFIG in override:
        return override[CONFIG] or {}
    file = Path(str(about.get("model_path", ""))) / "config.json"
    return json.loads(file.read_text("utf-8")).get(CONFIG) or {} if file.is_file() else None


def _shapes(model: ModelSettings) -> dict[str, list[int]]:
    folder = Path(model.path).expanduser()
    try:
        shapes = shapes_in(folder)
    except (OSError, ValueError) as error:
        raise RunRejected(f"model.path {folder} cannot be read: {error}; give a whole checkpoint") from error
    if not shapes:
        raise RunRejected(
            f"model.path {folder} has no safetensors files, which say what of the model becomes fp8; give a checkpoint"
            ' that has them, or write weights.quantization = "none"'
        )
    return shapes
