"""A run whose versions are deltas: a trainer that is killed and goes on, and an engine that follows it to the end."""

import json
from pathlib import Path

import pytest
import torch
from redis.asyncio import Redis
from safetensors.torch import load_file

from services.trainer.quantise_weights import Fp8Form
from services.trainer.serve_run import _open_publisher, train_run
from services.trainer.step_ledger import StepLedger
from services.trainer.tiny_model import TinyShape, write_tiny_model
from services.trainer.version_names import VersionName
from shared.messages import Event, WeightVersion
from shared.streams import Stream
from shared.topology import EVENTS, WEIGHTS
from tests.services.rollout.following_engine import Engine
from tests.services.trainer.bench import Killed, kill_at
from tests.services.trainer.recorded_groups import feed, publish_each, run_settings, serving, small_model, start_run

STEPS = 5


@pytest.mark.parametrize(("owner", "name", "call"), [(StepLedger, "commit", 4), (StepLedger, "announce", 4)])
async def test_a_killed_trainer_begins_with_all_that_it_resumed_and_the_engine_ends_with_the_export(
    redis: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: type, name: str, call: int
) -> None:
    """The second one dies when the files of version 3 are there, and nobody knows of them."""
    settings = run_settings(
        small_model(tmp_path / "model"), trainer={"steps": STEPS}, weights={"transport": "delta", "full_every": 3}
    )
    place = serving(redis, await start_run(redis, settings), tmp_path)
    await feed(redis, "r1", range(3 * STEPS))
    publish_each(monkeypatch)
    async with Engine(redis, tmp_path / "host").following() as engine:
        with monkeypatch.context() as patch:
            kill_at(patch, owner, name, call)
            with pytest.raises(Killed):
                await train_run(place, _open_publisher)
        await train_run(place, _open_publisher)
        assert engine.holds(load_file(tmp_path / "runs" / "r1" / "export" / "model.safetensors"))
    announced = [version for _, version in await Stream[WeightVersion](redis, "r1", WEIGHTS).read()]
    by_trainer: dict[int, list[tuple[int, str]]] = {}
    for each in announced:
        assert each.files is not None
        by_trainer.setdefault(VersionName.parse(each.files.folder).epoch, []).append((each.version, each.files.kind))
    before, after = by_trainer.values()
    assert before[:3] == [(0, "full"), (1, "delta"), (2, "delta")]
    first = after[0][0]
    assert first in {2, 3}, "the checkpoint is of step 2; a version that engines were told of is not taken back"
    kinds = ["full", "delta", "delta", "full"]
    assert after == [(first + number, kinds[number]) for number in range(STEPS + 1 - first)]
    events = [event.event for _, event in await Stream[Event](redis, "r1", EVENTS).read()]
    assert "weights_refused" not in events


async def test_versions_of_a_run_are_in_fp8_where_it_says_so_and_its_export_is_not(
    redis: Redis, tmp_path: Path
) -> None:
    write_tiny_model(tmp_path / "model", 0, TinyShape(hidden=128, layers=1, heads=2, kv_heads=2, head_dim=64))
    settings = run_settings(
        tmp_path / "model",
        model={"dtype": "bfloat16"},
        trainer={"steps": 2},
        weights={"transport": "delta", "quantization": "fp8", "modules_to_not_convert": ["up_proj"]},
    )
    place = serving(redis, await start_run(redis, settings), tmp_path)
    await feed(redis, "r1", range(6))
    async with Engine(redis, tmp_path / "host").following() as engine:
        await train_run(place, _open_publisher)
        exported = load_file(tmp_path / "runs" / "r1" / "export" / "model.safetensors")
        assert {tensor.dtype for tensor in exported.values()} == {torch.bfloat16}
        published = dict(Fp8Form(["up_proj"])(exported.items()))
        found = engine.server.weights
        assert found.keys() == published.keys()
        assert all(torch.equal(found[n].view(torch.uint8), tensor.view(torch.uint8)) for n, tensor in published.items())
    config = json.loads((tmp_path / "host" / "model" / "config.json").read_text())["quantization_config"]
    assert config["modules_to_not_convert"] == sorted(
        ["lm_head", "model.embed_tokens", *(f"model.layers.0.mlp.{name}_proj" for name in ("gate", "up"))]
    )
