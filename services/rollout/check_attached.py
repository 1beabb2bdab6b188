"""What an SGLang server says about itself -> whether a run can use it: the sentence of what does not fit, or none."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import httpx

from services.rollout.engine_calls import EngineCalls
from services.rollout.fp8_engine import quantization_problems
from shared.errors import SluiceError
from shared.run_settings import EngineSettings, ModelSettings, WeightSettings

CALLS = (
    "/pause_generation",
    "/continue_generation",
    "/init_weights_update_group",
    "/update_weights_from_distributed",
    "/update_weights_from_disk",
    "/weights_checker",
    "/flush_cache",
)
PRECISIONS = ("float32", "float16", "bfloat16")


class EngineUnfit(SluiceError):
    """The server answers, and cannot serve this run as it is; only its owner can change that."""


class EngineAway(SluiceError):
    """Nobody answers at the address, or not as a server that is up."""


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """A server as it was found."""

    release: str
    """Of SGLang."""
    model: str
    device: str
    ranks: int
    """Processes that hold a part of the weights."""
    shares_prefixes: bool
    """Whether a request may use what another one has cached."""
    other: tuple[str, ...]
    """Those of the run's engine.server_args that the server has another value of: its owner chose it."""


async def check_attached(
    calls: EngineCalls, url: str, model: ModelSettings, engine: EngineSettings, weights: WeightSettings
) -> ServerFacts:
    """Look at a server that somebody else started.

    Raises:
        EngineAway: it does not answer, or not yet.
        EngineUnfit: it is no SGLang server, or one that does not fit the run.
    """
    server, about = await _read(calls, url, "/server_info"), await _read(calls, url, "/model_info")
    for problem in (*problems(server, about, model, engine), *quantization_problems(server, about, model, weights)):
        raise EngineUnfit(f"the engine at {url} {problem}")
    for path in CALLS:
        if (await _ask(calls, url, path, "OPTIONS")).status_code == 404:
            raise EngineUnfit(f"the engine at {url} has no {path}; start an SGLang of release 0.5.17 or later")
    ranks, given = int(server.get("tp_size") or 1), engine.server_args
    other = tuple(sorted(name for name in given if name in server and server[name] != given[name]))
    release, path, device = str(server["version"]), str(about["model_path"]), str(server.get("device"))
    return ServerFacts(release, path, device, ranks, not server.get("disable_radix_cache"), other)


def problems(
    server: dict[str, Any], about: dict[str, Any], model: ModelSettings, engine: EngineSettings
) -> Iterator[str]:
    """What does not fit, each as the end of a sentence that begins with the engine's address."""
    if "version" not in server or "model_path" not in about:
        yield "is no SGLang server; write the address of one as engine.urls of the deployment"
    if not about.get("is_generation", True):
        yield "serves embeddings; start it with a model that generates"
    wanted, found = architectures(Path(model.path)), about.get("architectures")
    if wanted and found and wanted != found:
        served = f"{about.get('model_path')} ({', '.join(found)})"
        yield f"serves {served}, and model.path is {model.path} ({', '.join(wanted)}); start it with that model"
    if server.get("dtype") in PRECISIONS and server["dtype"] != model.dtype:
        yield f"runs in {server['dtype']}, and model.dtype is {model.dtype}; start it with --dtype {model.dtype}"
    for name, flag in (("dp_size", "--dp-size"), ("pp_size", "--pp-size")):
        if int(server.get(name) or 1) != 1:
            yield f"has {name} {server[name]}, whose weights SGLang cannot update; start it with {flag} 1"
    if engine.update_mode == "in_place" and not server.get("disable_radix_cache"):
        yield (
            "shares prefixes between requests, which would outlive an update in place; start it with"
            ' --disable-radix-cache, or write engine.update_mode = "retract"'
        )


def architectures(folder: Path) -> list[str]:
    """As the model's config.json names them; empty if it does not."""
    config = folder / "config.json"
    return list(json.loads(config.read_text("utf-8")).get("architectures") or []) if config.exists() else []


async def _read(calls: EngineCalls, url: str, path: str) -> dict[str, Any]:
    answer = await _ask(calls, url, path)
    if answer.status_code in (401, 403):
        raise EngineUnfit(f"the engine at {url} asks for a key; start it without one, and keep its port private")
    if answer.status_code == 503:
        raise EngineAway(f"the engine at {url} is starting")
    try:
        found = answer.json() if answer.status_code == 200 else None
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise EngineUnfit(
            f"what listens at {url} is no SGLang server (it answers {answer.status_code} to GET {path}); correct"
            " engine.urls of the deployment"
        )
    return cast(dict[str, Any], found)


async def _ask(calls: EngineCalls, url: str, path: str, method: str = "GET") -> httpx.Response:
    try:
        return await calls.ask(path, method=method)
    except httpx.HTTPError as error:
        raise EngineAway(f"the engine at {url} does not answer: {type(error).__name__} {error}".rstrip()) from error
