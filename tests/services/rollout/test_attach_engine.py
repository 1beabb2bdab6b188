"""A server of somebody else, as the sidecar sees it: what fits a run, and when it is another one."""

import asyncio
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from services.rollout.attach_engine import Attached, AttachedEngine
from services.rollout.check_attached import EngineAway, EngineUnfit, ServerFacts, check_attached
from services.rollout.engine_calls import EngineCalls
from services.rollout.launch_engine import EngineDied
from shared.deployment import Deployment
from shared.errors import RunRejected
from shared.logs import Log
from shared.messages import Event, TensorSpec
from shared.run_settings import EngineSettings, ModelSettings, RunSettings, WeightSettings
from shared.runs import RunRecord, State
from shared.safetensors_file import header_of
from shared.service import Place, Serving
from shared.streams import Stream
from shared.topology import EVENTS
from tests.conftest import until

URL = "http://engine"
SERVER = {
    "version": "0.5.23",
    "dtype": "float32",
    "device": "cpu",
    "tp_size": 2,
    "dp_size": 1,
    "pp_size": 1,
    "disable_radix_cache": False,
    "mem_fraction_static": 0.5,
}
ABOUT = {
    "model_path": "/their/model",
    "is_generation": True,
    "architectures": ["Qwen3ForCausalLM"],
    "weight_version": "default",
}


@dataclass
class Server:
    """What it says; `missing` calls answer 404, and `gone` lets nobody in."""

    server: dict[str, Any] = field(default_factory=lambda: dict(SERVER))
    about: dict[str, Any] = field(default_factory=lambda: dict(ABOUT))
    missing: set[str] = field(default_factory=set)
    status: int = 200
    gone: type[httpx.TransportError] | None = None

    async def answer(self, request: httpx.Request) -> httpx.Response:
        if self.gone:
            raise self.gone("no")
        path = request.url.path
        if request.method == "OPTIONS":
            return httpx.Response(404 if path in self.missing else 405)
        if path == "/update_weights_from_distributed":
            self.about["weight_version"] = json.loads(request.content)["weight_version"]
        told = {"/server_info": self.server, "/model_info": self.about}.get(path, {})
        return httpx.Response(self.status, json=told)

    def calls(self) -> EngineCalls:
        return EngineCalls(URL, httpx.MockTransport(self.answer))


@pytest.fixture
def model(tmp_path: Path) -> ModelSettings:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["Qwen3ForCausalLM"]}))
    return ModelSettings(path=str(tmp_path))


async def test_a_server_that_fits_says_what_the_sidecar_has_to_know(model: ModelSettings) -> None:
    engine = EngineSettings(server_args={"mem_fraction_static": 0.8, "tp_size": 2})
    facts = await check_attached(Server().calls(), URL, model, engine, WeightSettings())
    assert facts == ServerFacts("0.5.23", "/their/model", "cpu", 2, True, ("mem_fraction_static",))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"dtype": "bfloat16"}, "runs in bfloat16, and model.dtype is float32; start it with --dtype float32"),
        ({"dp_size": 2}, "start it with --dp-size 1"),
        ({"pp_size": 4}, "start it with --pp-size 1"),
        ({"architectures": ["LlamaForCausalLM"]}, r"serves /their/model \(LlamaForCausalLM\), and model.path is"),
        ({"is_generation": False}, "start it with a model that generates"),
        ({"missing": {"/weights_checker"}}, "has no /weights_checker; start an SGLang of release 0.5.17 or later"),
        ({"status": 401}, "asks for a key; start it without one"),
        ({"status": 404}, r"is no SGLang server \(it answers 404 to GET /server_info\); correct engine.urls"),
        ({"server": {"hello": "world"}}, "is no SGLang server"),
    ],
)
async def test_a_server_that_does_not_fit_is_refused_with_what_its_owner_has_to_do(
    model: ModelSettings, change: dict[str, Any], sentence: str
) -> None:
    server = Server()
    for name, value in change.items():
        place = server.server if name in SERVER else server.about if name in ABOUT else None
        if place is None:
            setattr(server, name, value)
        else:
            place[name] = value
    with pytest.raises(EngineUnfit, match=sentence):
        await check_attached(server.calls(), URL, model, EngineSettings(), WeightSettings())


FP8: dict[str, Any] = {"quant_method": "fp8", "weight_block_size": [128, 128], "modules_to_not_convert": ["lm_head"]}


@pytest.mark.parametrize(
    ("wanted", "served", "argument", "sentence"),
    [
        ("fp8", FP8, None, ""),
        ("fp8", None, None, ""),
        ("none", {}, None, ""),
        ("none", FP8, None, 'serves weights in fp8, and weights.quantization is "none"; start it with model.path'),
        ("none", None, "awq", "serves weights in awq"),
        (
            "fp8",
            {},
            None,
            "not quantised, .* start it with the folder that `sluice quantize .* FOLDER` writes",
        ),
        ("fp8", {}, "fp8", r"quantises its model by itself \(--quantization fp8\)"),
        ("fp8", {**FP8, "weight_block_size": None}, None, "in fp8, in blocks of None, and versions are in fp8"),
        ("fp8", {**FP8, "modules_to_not_convert": ["o_proj"]}, None, "keeps 2 matrices .* model.layers.0.self_attn.o_"),
        ("fp8 but layer 1", FP8, None, r"has 2 matrices in fp8 .* model.layers.1.mlp.down_proj; take them out"),
    ],
)
async def test_a_server_of_another_form_than_the_versions_is_refused(
    tmp_path: Path,
    model: ModelSettings,
    wanted: str,
    served: dict[str, Any] | None,
    argument: str | None,
    sentence: str,
) -> None:
    """`served`: the quantization_config of its model; None: it lies on another host."""
    parts = ("0.self_attn.o_proj", "1.self_attn.o_proj", "1.mlp.down_proj")
    specs = [TensorSpec(f"model.layers.{part}.weight", "bfloat16", [256, 128]) for part in parts]
    (Path(model.path) / "model.safetensors").write_bytes(header_of(specs))
    theirs, server = tmp_path / "theirs", Server()
    theirs.mkdir()
    server.server["quantization"] = argument
    if served is not None:
        server.about["model_path"] = str(theirs)
        (theirs / "config.json").write_text(json.dumps({"quantization_config": served} if served else {}))
    kept = ["layers.1"] if wanted.endswith("1") else []
    weights = WeightSettings.model_validate({"quantization": wanted[:4].strip(), "modules_to_not_convert": kept})
    looked = check_attached(server.calls(), URL, model, EngineSettings(), weights)
    if not sentence:
        await looked
        return
    with pytest.raises(EngineUnfit, match=sentence):
        await looked


async def test_updates_in_place_want_a_server_without_shared_prefixes(model: ModelSettings) -> None:
    server, engine = Server(), EngineSettings(update_mode="in_place")
    with pytest.raises(EngineUnfit, match="start it with --disable-radix-cache"):
        await check_attached(server.calls(), URL, model, engine, WeightSettings())
    server.server["disable_radix_cache"] = True
    await check_attached(server.calls(), URL, model, engine, WeightSettings())


@pytest.mark.parametrize("change", [{"status": 503}, {"gone": httpx.ConnectError}, {"gone": httpx.ReadTimeout}])
async def test_a_server_that_is_starting_or_away_may_come_back(model: ModelSettings, change: dict[str, Any]) -> None:
    with pytest.raises(EngineAway):
        await check_attached(Server(**change).calls(), URL, model, EngineSettings(), WeightSettings())


@pytest.fixture
def attached(monkeypatch: pytest.MonkeyPatch) -> tuple[Server, AttachedEngine]:
    monkeypatch.setattr("services.rollout.attach_engine.LOOK_S", 0.01)
    monkeypatch.setattr("services.rollout.attach_engine.UNHEALTHY_S", 0.1)
    server = Server()
    return server, AttachedEngine(URL, ServerFacts("0.5.23", "/their/model", "cpu", 1, True, ()), server.calls())


async def test_a_server_that_was_restarted_between_two_looks_is_another_one(
    attached: tuple[Server, AttachedEngine],
) -> None:
    server, engine = attached
    await engine.calls.receive_bucket([TensorSpec("a", "float32", [1])], "group", 7, 1)
    assert engine.calls.version == "7"
    server.about["weight_version"] = "default"
    with pytest.raises(EngineDied, match="named 'default' and was given '7'"):
        await engine.watch()


@pytest.mark.parametrize(
    ("failure", "sentence"), [(httpx.ConnectError, "its owner has to start it"), (httpx.ReadTimeout, "not answered")]
)
async def test_a_server_that_is_gone_or_silent_has_come_to_the_end_of_its_life(
    attached: tuple[Server, AttachedEngine], failure: type[httpx.TransportError], sentence: str
) -> None:
    server, engine = attached
    server.gone = failure
    with pytest.raises(EngineDied, match=sentence):
        await engine.watch()


def serving(redis: Redis, model: ModelSettings, state: State, **sections: Any) -> Serving:
    tree = {
        **sections,
        "name": "r1",
        "model": model.model_dump(),
        "data": {"datasets": [{"name": "sums"}]},
        "trainer": {"steps": 1},
    }
    record = RunRecord("r1", RunSettings.model_validate(tree), state, "", 0, None, None)
    return Serving(Place(Deployment(), redis, Log("engine"), "engine-a"), record, lambda: None)


def test_a_server_of_somebody_else_serves_no_adapters(redis: Redis, model: ModelSettings) -> None:
    sections = {"lora": {"rank": 8, "publish": "adapter"}, "weights": {"transport": "disk"}}
    with pytest.raises(RunRejected, match=r"which somebody else keeps, .* write lora\.publish = \"merged\""):
        Attached(serving(redis, model, "starting", **sections), URL)


@pytest.fixture
def unfit(monkeypatch: pytest.MonkeyPatch) -> Server:
    server = Server(server={**SERVER, "dp_size": 2})
    monkeypatch.setattr("services.rollout.attach_engine.EngineCalls", lambda *_, **__: server.calls())
    monkeypatch.setattr("services.rollout.attach_engine.FIRST_PAUSE_S", 0.01)
    return server


async def test_a_server_that_does_not_fit_fails_a_run_that_starts(
    redis: Redis, model: ModelSettings, unfit: Server
) -> None:
    with pytest.raises(RunRejected, match="start it with --dp-size 1"):
        await Attached(serving(redis, model, "starting"), URL).start()


async def test_a_run_that_runs_waits_until_the_server_fits_again_and_says_once_why(
    redis: Redis, model: ModelSettings, unfit: Server
) -> None:
    events, lives = Stream[Event](redis, "r1", EVENTS), Attached(serving(redis, model, "running"), URL)
    starting = asyncio.create_task(lives.start())
    unfit.gone = httpx.ConnectError
    await until(lambda: _has(events, 1), 5)
    unfit.gone = None
    await until(lambda: _has(events, 2), 5)
    unfit.server = dict(SERVER)
    first = await asyncio.wait_for(starting, 5)
    told = [event for _, event in await events.read()]
    assert [event.event for event in told] == ["engine_awaited"] * 2
    assert ["does not answer" in told[0].detail["reason"], "--dp-size 1" in told[1].detail["reason"]] == [True, True]
    assert (await lives.start()).incarnation != first.incarnation


async def _has(events: Stream[Event], count: int) -> bool:
    return len(await events.read()) >= count
