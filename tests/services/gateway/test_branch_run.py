"""Branches over HTTP: counters and cursor that the new run begins with, and what is refused."""

from collections.abc import Iterable
from typing import Any

import httpx
from redis.asyncio import Redis

from services.gateway.branch_cursor import released_until
from services.gateway.dataset_store import DatasetStore
from services.gateway.feed_run import open_rows
from services.gateway.feeder_lease import FeederLease
from services.gateway.parts import Parts
from services.gateway.read_standing import read_standing
from services.gateway.release_evaluation import EvaluationRelease
from services.gateway.release_training import TrainingRelease
from services.trainer.checkpoint import MANIFEST
from shared.evaluation import is_due
from shared.messages import Event, GroupReady, Prompt, StepCommit, StepIntent
from shared.run_settings import RunSettings
from shared.runs import Runs
from shared.scripts import Ledger
from shared.topology import PROMPTS, Keys
from tests.services.gateway.gateway_cases import add, released, run_settings, run_tree, sums


async def fed(redis: Redis, store: DatasetStore, run: str, kinds: str = "train") -> list[Prompt]:
    """Release all that admission allows now, as the feeder does; returns every prompt of the run."""
    record = await Runs(redis).get(run)
    assert record is not None
    lease = FeederLease(redis, Keys(run))
    await lease.take()
    with open_rows(store, record.settings) as rows:
        kind = TrainingRelease if kinds == "train" else EvaluationRelease
        release = kind(Ledger(redis, Keys(run)), lease.token, record.settings, rows)
        if isinstance(release, TrainingRelease):
            await release.load(redis, Keys(run))
        while await release.release(await read_standing(redis, Keys(run))):
            pass
    await lease.give_back()
    return await released(redis, run)


async def trained(redis: Redis, run: str, steps: Iterable[tuple[int, list[int]]]) -> None:
    ledger = Ledger(redis, Keys(run))
    epoch = await ledger.take_over()
    for step, group_ids in steps:
        await ledger.intend(epoch, StepIntent(step, group_ids, step - 1, step), [])
        await ledger.commit(epoch, StepCommit(step, step, {}), group_ids, 0)
        await ledger.advance("weight_version", step)


async def parent(redis: Redis, store: DatasetStore, settings: RunSettings) -> list[Prompt]:
    """Run r1 with 3 steps of 4 groups done, and what it released for them and for the next ones."""
    await add(store, "sums", sums(30))
    await Runs(redis).create(settings)
    await Ledger(redis, Keys("r1")).advance("weight_version", 0)
    for step in (1, 2, 3):
        await fed(redis, store, "r1")
        await trained(redis, "r1", [(step, list(range(4 * step - 4, 4 * step)))])
    return await fed(redis, store, "r1")


async def branch(client: httpx.AsyncClient, run: str = "r1", **wanted: Any) -> dict[str, Any]:
    answer = await client.post(f"/v1/runs/{run}/branch", json=wanted)
    assert answer.status_code == 201, answer.text
    return answer.json()


async def refusal(client: httpx.AsyncClient, status: int, run: str = "r1", **wanted: Any) -> str:
    answer = await client.post(f"/v1/runs/{run}/branch", json=wanted)
    assert answer.status_code == status, answer.text
    return str(answer.json()["error"]["message"])


async def test_a_branch_begins_at_its_step_with_the_rows_that_its_parent_read_next(
    client: httpx.AsyncClient, store: DatasetStore, redis: Redis
) -> None:
    theirs = await parent(redis, store, run_settings(trainer={"steps": 10}))
    run = await branch(client, step=2, settings={"trainer": {"learning_rate": 1e-5}})
    assert (run["run"], run["state"], run["step"], run["weight_version"]) == ("r1-2", "queued", 2, None)
    assert run["settings"]["trainer"]["learning_rate"] == 1e-5
    assert run["settings"]["trainer"]["steps"] == 10
    assert run["settings"]["branch"] == {"run": "r1", "step": 2}
    expected = {"step": 2, "intended": 2, "forgotten_step": 2, "released": 8, "inherited": 8}
    assert run["counters"] == expected
    await Ledger(redis, Keys("r1-2")).advance("weight_version", 2)
    ours = await fed(redis, store, "r1-2")
    assert [prompt.group_id for prompt in ours] == [0, 1, 2, 3]
    assert [prompt.row for prompt in ours] == [prompt.row for prompt in theirs[8:12]]


async def test_the_ledger_of_a_branch_balances_without_the_groups_of_its_parent(
    client: httpx.AsyncClient, store: DatasetStore, redis: Redis
) -> None:
    await parent(redis, store, run_settings(trainer={"steps": 10}))
    await branch(client, step=3, name="b")
    for feeding in (False, True):
        if feeding:
            await Ledger(redis, Keys("b")).advance("weight_version", 3)
            await fed(redis, store, "b")
        ledger = (await client.get("/v1/runs/b/ledger?verify=true")).json()
        assert (ledger["balanced"], ledger["problems"]) == (True, [])
        assert ledger["groups"]["released"] == (4 if feeding else 0)


async def test_evaluation_groups_do_not_move_the_place_in_the_data(
    client: httpx.AsyncClient, store: DatasetStore, redis: Redis
) -> None:
    """One is evaluated, one dropped, the others are still under way: none of them took a row of the mix."""
    await add(store, "held", sums(5, first=500))
    await add(store, "sums", sums(30))
    settings = run_settings(eval={"datasets": ["held"], "every": 5})
    await Runs(redis).create(settings)
    keys, ledger = Keys("r1"), Ledger(redis, Keys("r1"))
    await ledger.advance("weight_version", 0)
    await fed(redis, store, "r1", "eval")
    prompts = await fed(redis, store, "r1")
    assert [prompt.kind for prompt in prompts] == ["eval"] * 5 + ["train"] * 4
    await ledger.tally(GroupReady(0, "eval", "held", 0, [2], [1.0], 0, 0, 0), off_version=False)
    await ledger.drop(1, "eval", "rejected", Event(0.0, "rollout", "group_dropped", {"kind": "eval"}), (0, "held"))
    first = (await redis.xrange(keys.stream(PROMPTS)))[:2]
    await redis.xdel(keys.stream(PROMPTS), *(entry_id for entry_id, _ in first))
    await trained(redis, "r1", [(1, [5, 6, 8, 7])])
    assert await released_until(redis, keys, 1) == 4
    theirs = (await fed(redis, store, "r1"))[-4:]
    await branch(client, step=1, name="b")
    await Ledger(redis, Keys("b")).advance("weight_version", 1)
    assert [prompt.row for prompt in await fed(redis, store, "b")] == [prompt.row for prompt in theirs]


async def test_a_branch_of_a_branch_reads_on_where_that_one_was(
    client: httpx.AsyncClient, store: DatasetStore, redis: Redis
) -> None:
    theirs = await parent(redis, store, run_settings(trainer={"steps": 10}))
    await branch(client, step=1, name="b")
    await Ledger(redis, Keys("b")).advance("weight_version", 1)
    await fed(redis, store, "b")
    await trained(redis, "b", [(2, [0, 1, 2, 3])])
    await branch(client, run="b", step=2, name="c")
    await branch(client, run="b", step=1, name="d")
    for run, begin in (("c", 2), ("d", 1)):
        await Ledger(redis, Keys(run)).advance("weight_version", begin)
        rows = [prompt.row for prompt in await fed(redis, store, run)]
        assert rows == [prompt.row for prompt in theirs[4 * begin : 4 * begin + 4]]
    assert "begins at step 1; branch from r1" in await refusal(client, 422, run="b", step=0)


async def test_other_data_or_another_order_begins_at_the_first_row(
    client: httpx.AsyncClient, store: DatasetStore, redis: Redis
) -> None:
    await parent(redis, store, run_settings(trainer={"steps": 10}, data={"shuffle": False}))
    await branch(client, step=2, name="b", settings={"seed": 5})
    await Ledger(redis, Keys("b")).advance("weight_version", 2)
    assert [prompt.row for prompt in await fed(redis, store, "b")] == [0, 1, 2, 3]


async def test_a_branch_that_cannot_be_is_refused_with_what_to_write(
    client: httpx.AsyncClient, store: DatasetStore, redis: Redis
) -> None:
    await parent(redis, store, run_settings(trainer={"steps": 10}))
    assert "there is no run 'r9'" in await refusal(client, 404, run="r9", step=1)
    assert "branch from a step of 0 to 3" in await refusal(client, 422, step=4)
    assert "trainer.steps = 3 or more" in await refusal(client, 422, step=2, settings={"trainer": {"steps": 2}})
    assert "did you mean trainer.steps" in await refusal(client, 422, step=2, settings={"trainer": {"stepz": 2}})
    assert "has 'float32'" in await refusal(client, 422, step=2, settings={"model": {"dtype": "bfloat16"}})
    assert "[lora] differs from that of run r1" in await refusal(client, 422, step=2, settings={"lora": {"rank": 8}})
    assert "give name and step beside" in await refusal(client, 422, step=2, settings={"name": "x"})
    assert "r1 exists" in await refusal(client, 409, step=2, name="r1")
    assert await redis.exists(Keys("r1-2").counters) == 0
    by_hand = await client.post("/v1/runs", json=run_tree("r2", branch={"run": "r1", "step": 1}))
    assert by_hand.status_code == 422
    assert "sluice branch RUN --from STEP" in by_hand.text


async def test_a_step_whose_state_is_gone_is_refused_with_those_that_are_not_and_the_name_stays_free(
    client: httpx.AsyncClient, store: DatasetStore, redis: Redis, parts: Parts
) -> None:
    await parent(redis, store, run_settings(trainer={"steps": 10}))
    record, ledger = await Runs(redis).get("r1"), Ledger(redis, Keys("r1"))
    assert record is not None
    folder = parts.runs_folder / "r1" / "checkpoints" / "step_000002"
    folder.mkdir(parents=True)
    (folder / MANIFEST).write_text(f'{{"owner": "{record.created:.6f}", "step": 2}}')
    epoch = await ledger.take_over()
    for step in (1, 2):
        await ledger.forget(epoch, range(4 * step - 4, 4 * step), step)
    assert "those that can be had: 0, 2 to 3 (trainer" in await refusal(client, 422, step=1, name="b")
    assert (await branch(client, step=3, name="b"))["state"] == "queued"


async def test_what_only_a_parent_that_is_gone_had_is_refused_to_a_branch_of_its_branch(
    client: httpx.AsyncClient, store: DatasetStore, redis: Redis, parts: Parts
) -> None:
    await parent(redis, store, run_settings(trainer={"steps": 10}))
    await branch(client, step=1, name="b")
    await trained(redis, "b", [(2, [0, 1, 2, 3])])
    (parts.runs_folder / "b").mkdir(parents=True)
    assert (await branch(client, run="b", step=2, name="c"))["state"] == "queued"
    await redis.delete(Keys("r1").record)
    assert "those that can be had: none" in await refusal(client, 422, run="b", step=2, name="d")


def test_the_version_that_a_branch_begins_with_is_evaluated_and_none_before_it() -> None:
    settings = run_settings(eval={"datasets": ["sums"], "every": 4}, branch={"run": "r0", "step": 6})
    assert [version for version in range(11) if is_due(settings, version)] == [6, 8, 10]


async def test_adapters_go_on_as_they_are_beside_the_model_that_they_are_for(
    client: httpx.AsyncClient, store: DatasetStore, redis: Redis
) -> None:
    await parent(redis, store, run_settings(trainer={"steps": 10}, lora={"rank": 8}))
    for other in ({"rank": 4}, {"rank": 0}, {"alpha": 8.0}, {"target_modules": ["o_proj"]}):
        assert "leave it, but for lora.publish" in await refusal(client, 422, step=2, settings={"lora": other})
    assert "are for some/model" in await refusal(client, 422, step=2, settings={"model": {"path": "other/model"}})
    served = {"lora": {"publish": "adapter"}, "weights": {"transport": "disk"}}
    assert (await branch(client, step=2, settings=served))["state"] == "queued"
