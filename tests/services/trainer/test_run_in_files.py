"""A run whose versions are deltas: a trainer that is killed and goes on, and an engine that follows it to the end."""

from pathlib import Path

import pytest
from redis.asyncio import Redis
from safetensors.torch import load_file

from services.trainer.serve_run import _open_publisher, train_run
from services.trainer.step_ledger import StepLedger
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
