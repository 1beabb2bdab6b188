"""The feeder against a real Redis: admission, mixing, evaluation, fencing, restarts, states, failures."""

import asyncio
import time
from collections import Counter
from typing import Any

import pytest
from redis.asyncio import Redis

from services.gateway import await_services, feed_run
from services.gateway.dataset_store import DatasetStore
from services.gateway.feed_run import open_rows
from services.gateway.feeder import Feeder
from services.gateway.feeder_lease import FeederLease
from services.gateway.mix_datasets import draw
from services.gateway.read_standing import read_standing
from services.gateway.release_evaluation import EvaluationRelease
from services.gateway.release_training import TrainingRelease
from services.gateway.row_order import RowOrder
from shared.errors import FencedOut
from shared.evaluation import read_tallies
from shared.messages import Event
from shared.run_settings import RunSettings
from shared.runs import Runs, announce, withdraw
from shared.scripts import Ledger
from shared.tasks import end
from tests.conftest import until
from tests.services.gateway.fed_run import KEYS, feeding, more_turns, start, state, until_released
from tests.services.gateway.gateway_cases import (
    LOG,
    add,
    announce_all,
    pairs,
    released,
    run_settings,
    sums,
    written_run_tree,
)


async def test_nothing_is_released_until_every_role_and_the_first_version_are_there(
    redis: Redis, store: DatasetStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(await_services, "LOG_EVERY_S", 0.05)
    caplog.set_level("INFO", "sluice.gateway")
    await add(store, "sums", sums(10))
    await Runs(redis).create(run_settings())
    async with feeding(redis, store):
        await announce_all(redis)
        await withdraw(redis, "r1", "engine/e0")

        async def logged() -> bool:
            return any(getattr(r, "fields", {}).get("missing") == WAITED_FOR for r in caplog.records)

        await until(logged)
        assert (await state(redis), await released(redis)) == ("starting", [])
        await announce_all(redis)
        await Ledger(redis, KEYS).advance("weight_version", 0)
        await until_released(redis, 4)
        assert await state(redis) == "running"


WAITED_FOR = "engine, the first weight version"


@pytest.mark.parametrize(("kind", "group_size"), [("sft", 1), ("dpo", 2)])
async def test_a_run_whose_answers_are_written_needs_no_engines_and_looks_four_steps_ahead(
    redis: Redis, store: DatasetStore, kind: str, group_size: int
) -> None:
    await add(store, "sums", sums(10) if kind == "sft" else pairs(10))
    await Runs(redis).create(RunSettings.model_validate(written_run_tree(kind)))
    async with feeding(redis, store):
        for member in ("trainer/trainer", "rollout/w0"):
            await announce(redis, "r1", member)
        await until_released(redis, 5 * 4)
    prompts = await released(redis)
    assert {(p.kind, p.group_size, p.pinned_version) for p in prompts} == {(kind, group_size, None)}
    answers = {(p.label, p.chosen, p.rejected) for p in prompts}
    written = {(str(i + 1), None, None) if kind == "sft" else (None, str(i + 1), str(i)) for i in range(10)}
    assert answers == written


async def test_a_prompt_carries_its_row_and_the_settings_of_the_run(redis: Redis, store: DatasetStore) -> None:
    await start(redis, store, run_settings(rollout={"sampling": {"max_new_tokens": 7}}, data={"shuffle": False}))
    async with feeding(redis, store):
        await until_released(redis, 4)
    last = (await released(redis))[3]
    assert (last.group_id, last.kind, last.dataset, last.row) == (3, "train", "sums", 3)
    assert (last.prompt, last.label, last.group_size) == ("3+1=", "4", 2)
    assert last.sampling["max_new_tokens"] == 7
    assert last.sampling["temperature"] == 1.0


@pytest.mark.parametrize("max_staleness", [0, 2])
async def test_admission_opens_by_one_step_a_version_and_a_drop_returns_one_slot_once(
    redis: Redis, store: DatasetStore, max_staleness: int
) -> None:
    settings = run_settings(rollout={"max_staleness": max_staleness}, trainer={"steps": 5})
    ledger = await start(redis, store, settings)
    async with feeding(redis, store):
        await until_released(redis, 4 * (max_staleness + 1))
        await ledger.advance("weight_version", 1)
        await until_released(redis, 4 * (max_staleness + 2))
        for _ in range(2):  # the second drop of the same group counts nothing
            await ledger.drop(0, "train", "filter", Event(0.0, "reward", "dropped"), None)
        await until_released(redis, 4 * (max_staleness + 2) + 1)
        await ledger.advance("weight_version", 5)
        await until_released(redis, 4 * 5 + 1)  # the run trains five steps; nothing is released for a sixth


async def test_a_paused_dataset_gives_nothing_and_the_others_share_by_weight(redis: Redis, store: DatasetStore) -> None:
    for name in ("b", "c"):
        await add(store, name, sums(100))
    shares = [{"name": "sums", "weight": 3}, {"name": "b", "weight": 1}, {"name": "c", "weight": 0}]
    await start(redis, store, run_settings(data={"datasets": shares}, rollout={"groups_per_step": 200}))
    async with feeding(redis, store):
        await until_released(redis, 200)
    assert Counter(p.dataset for p in await released(redis)) == {"sums": 150, "b": 50}


async def test_feeders_that_are_killed_and_replaced_release_every_row_once_and_in_order(
    redis: Redis, store: DatasetStore
) -> None:
    await add(store, "b", sums(23))
    shares = [{"name": "sums", "weight": 2}, {"name": "b", "weight": 1}]
    settings = run_settings(data={"datasets": shares}, rollout={"groups_per_step": 10}, trainer={"steps": 30})
    ledger = await start(redis, store, settings, rows=71)
    for version in range(30):
        feeders = [asyncio.create_task(Feeder(redis, store, LOG, 0.05).feed()) for _ in range(2)]
        await ledger.advance("weight_version", version)
        await until_some(redis, version * 10 + 1 + version % 10)
        await end(*feeders)  # at any point of their work, the answer to a release included
    async with feeding(redis, store):
        await until_released(redis, 300)
    prompts = await released(redis)
    assert [p.group_id for p in prompts] == list(range(300))
    assert [(p.dataset, p.row) for p in prompts] == expected_rows(settings, {"sums": 71, "b": 23}, 300)


async def until_some(redis: Redis, count: int) -> None:
    async def there() -> bool:
        return len(await released(redis)) >= count

    await until(there)


def expected_rows(settings: RunSettings, sizes: dict[str, int], count: int) -> list[tuple[str, int]]:
    orders = {name: RowOrder(name, size, settings.seed, True) for name, size in sizes.items()}
    weights = {share.name: share.weight for share in settings.data.datasets}
    draws, _ = draw({}, weights, sizes, count)
    return [(one.dataset, orders[one.dataset].row(one.epoch, one.position)) for one in draws]


async def test_a_feeder_whose_lease_is_gone_releases_nothing(redis: Redis, store: DatasetStore) -> None:
    settings = run_settings(eval={"datasets": ["sums"]})
    ledger = await start(redis, store, settings)
    old, new = FeederLease(redis, KEYS), FeederLease(redis, KEYS)
    assert await old.take()
    assert not await new.take()
    await redis.delete(KEYS.feeder_lease)  # as if it had run out while the old feeder hung
    assert await new.take()
    standing = await read_standing(redis, KEYS)
    with open_rows(store, settings) as rows:
        for release in (TrainingRelease, EvaluationRelease):
            with pytest.raises(FencedOut):
                await release(ledger, old.token, settings, rows).release(standing)
        assert await released(redis) == []
        assert await TrainingRelease(ledger, new.token, settings, rows).release(standing) == 4
    await old.give_back()
    assert await redis.get(KEYS.feeder_lease) == new.token.encode()


async def test_rows_that_take_longer_to_read_than_the_lease_lasts_are_released_all_the_same(
    redis: Redis, store: DatasetStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    permute = RowOrder._permute

    def slow(self: RowOrder, epoch: int) -> Any:
        time.sleep(0.5)  # sorting ten million rows takes seconds
        return permute(self, epoch)

    monkeypatch.setattr(RowOrder, "_permute", slow)
    await start(redis, store, run_settings())
    async with feeding(redis, store, lease_s=0.15):
        await until_released(redis, 4)


async def test_a_feeder_whose_lease_was_taken_while_it_had_nothing_to_do_lets_go(
    redis: Redis, store: DatasetStore, caplog: pytest.LogCaptureFixture
) -> None:
    ledger = await start(redis, store, run_settings())

    async def let_go() -> bool:
        return any(record.getMessage() == "feeder_fenced_out" for record in caplog.records)

    async with feeding(redis, store, lease_s=0.15):
        await until_released(redis, 4)
        await redis.set(KEYS.feeder_lease, "another")
        await ledger.advance("weight_version", 1)
        await until(let_go)
        assert len(await released(redis)) == 4
        await redis.delete(KEYS.feeder_lease)
        await until_released(redis, 8)


async def test_a_version_that_is_due_is_evaluated_once_row_by_row_and_pinned(redis: Redis, store: DatasetStore) -> None:
    await add(store, "one", sums(70))
    await add(store, "two", sums(3, first=500))
    settings = run_settings(
        rollout={"groups_per_step": 2},
        eval={"datasets": ["one", "two"], "every": 2, "group_size": 3, "sampling": {"temperature": 0.0}},
    )
    ledger = await start(redis, store, settings)
    for _ in range(2):  # a second feeder finds the evaluation done
        async with feeding(redis, store):
            await until_released(redis, 2 + 73)
    await ledger.advance("weight_version", 1)
    async with feeding(redis, store):
        await until_released(redis, 4 + 73)
        await ledger.advance("weight_version", 2)
        await until_released(redis, 6 + 2 * 73)
    prompts = [p for p in await released(redis) if p.kind == "eval" and p.pinned_version == 2]
    assert [(p.dataset, p.row) for p in prompts] == [("one", i) for i in range(70)] + [("two", i) for i in range(3)]
    assert {(p.group_size, p.sampling["temperature"]) for p in prompts} == {(3, 0.0)}
    assert prompts[72].prompt == "502+1="
    tallies = await read_tallies(redis, KEYS, 2)
    assert [(t.dataset, t.groups, t.complete) for t in tallies] == [("one", 70, False), ("two", 3, False)]


async def test_a_run_of_0_steps_releases_its_evaluation_and_does_not_open_what_others_train(
    redis: Redis, store: DatasetStore
) -> None:
    await add(store, "held", sums(70))
    mix = {"datasets": [{"name": "gone"}]}
    settings = run_settings(data=mix, trainer={"steps": 0}, eval={"datasets": ["held"]})
    await start(redis, store, settings)
    async with feeding(redis, store):
        await until_released(redis, 70)
    assert {(p.kind, p.pinned_version) for p in await released(redis)} == {("eval", 0)}


async def test_an_evaluation_that_was_interrupted_goes_on_at_the_next_row(redis: Redis, store: DatasetStore) -> None:
    settings = run_settings(eval={"datasets": ["sums"]})
    ledger = await start(redis, store, settings, rows=100)
    lease = FeederLease(redis, KEYS)
    await lease.take()
    with open_rows(store, settings) as rows:
        for expected in (64, 36, 0):  # a new object each time, as after a crash
            release = EvaluationRelease(ledger, lease.token, settings, rows)
            assert await release.release(await read_standing(redis, KEYS)) == expected
    assert [p.row for p in await released(redis)] == list(range(100))


async def test_a_stop_is_ended_by_the_gateway_only_when_no_trainer_is_there(
    redis: Redis, store: DatasetStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed_run, "PRESENCE_S", 0.1)
    monkeypatch.setattr(feed_run, "STOP_POLL_S", 0.02)
    await start(redis, store, run_settings())
    async with feeding(redis, store):
        await until_released(redis, 4)
        await Runs(redis).move("r1", ("running",), "stopping")
        await more_turns(10)  # longer than a trainer may be away
        assert await state(redis) == "stopping"
        await withdraw(redis, "r1", "trainer/trainer")

        async def stopped() -> bool:
            return await state(redis) == "stopped"

        await until(stopped)


async def test_a_run_that_cannot_be_fed_fails_with_its_reason_and_the_next_one_is_fed(
    redis: Redis, store: DatasetStore
) -> None:
    await add(store, "sums", sums(10))
    await Runs(redis).create(run_settings("r0", data={"datasets": [{"name": "gone"}]}))
    await start(redis, store, run_settings())
    async with feeding(redis, store):
        await until_released(redis, 4)
    failed = await Runs(redis).get("r0")
    assert failed is not None
    assert (failed.state, failed.reason.split(";")[0]) == ("failed", "gateway: there is no dataset 'gone'")


async def test_a_defect_fails_the_run_and_not_the_gateway(
    redis: Redis, store: DatasetStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def defect(*_: Any) -> None:
        raise ZeroDivisionError("what a surprise")

    await start(redis, store, run_settings())
    with monkeypatch.context() as patch:
        patch.setattr(TrainingRelease, "_prompts", defect)
        async with feeding(redis, store):

            async def failed() -> bool:
                return await state(redis) == "failed"

            await until(failed)
    record = await Runs(redis).get("r1")
    assert record is not None
    assert record.reason == "gateway: the feeder failed with ZeroDivisionError: what a surprise"


@pytest.mark.parametrize("told", ["why", "error"])
async def test_a_run_of_which_every_group_is_refused_fails_instead_of_dropping_for_ever(
    redis: Redis, store: DatasetStore, told: str
) -> None:
    settings = run_settings()
    ledger = await start(redis, store, settings)
    limit = feed_run.HOPELESS_STEPS * settings.rollout.groups_per_step

    async def refuse_all() -> bool:
        for prompt in await released(redis):
            detail = {"group": prompt.group_id, told: "the prompt is too long"}
            await ledger.drop(
                prompt.group_id, "train", "rejected", Event(0.0, "rollout", "group_dropped", detail), None
            )
        return await state(redis) == "failed"

    async with feeding(redis, store):
        await until(refuse_all)
    record = await Runs(redis).get("r1")
    assert record is not None
    assert "refused or given up" in record.reason
    assert record.reason.endswith("the prompt is too long")
    assert limit <= (await ledger.counters())["dropped"] <= 2 * limit
