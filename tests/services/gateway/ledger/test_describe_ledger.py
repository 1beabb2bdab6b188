"""The ledger of a run against a real Redis: what it counts, what it proves, and every way in which it can be wrong."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from redis.asyncio import Redis

from services.gateway.ledger import check_attempts, place_groups
from services.gateway.ledger.describe_ledger import describe_ledger
from shared.ledger_answers import LedgerAnswer
from shared.messages import Attempt, Codec, StepCommit, StepIntent
from shared.topology import GROUPS, PROMPTS, ROLLOUTS, STEPS
from tests.services.gateway.ledger.played_run import PlayedRun


@pytest.fixture
async def run(redis: Redis) -> PlayedRun:
    return await PlayedRun.open(redis)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (place_groups, check_attempts):
        monkeypatch.setattr(module, "DEADLINE_S", 0.05)
        monkeypatch.setattr(module, "AGAIN_S", 0.02)


async def verify(run: PlayedRun, folder: Path = Path("nowhere")) -> LedgerAnswer:
    return await describe_ledger(run.redis, run.record, folder, verify=True)


async def test_every_group_is_in_one_place_and_every_token_in_one_account(run: PlayedRun) -> None:
    await run.everywhere()
    ledger = await verify(run)
    assert ledger.problems == []
    groups = ledger.groups
    assert (groups.released, groups.evaluations, groups.trained, groups.evaluated) == (18, 2, 4, 2)
    assert (groups.dropped, groups.dead, groups.lost, groups.twice) == ({"filter": 1}, 1, 0, 0)
    assert groups.pending == {"prompts": 3, "rollouts": 1, "joining": 1, "ready": 1, "intended": 4}
    assert (ledger.step, ledger.intended, ledger.balanced, ledger.verified) == (1, 2, True, True)
    # the late second attempt of the dead group counts as dead; that of the dropped one was never generated
    total = ledger.tokens.total
    assert total == {
        "generated": 9 * 7 + 3 + 7 + 2 * 7 + 3,
        "trained": 28,
        "evaluated": 14,
        "dropped:filter": 3,
        "dropped:dead": 7,
        "undecided": 5 * 7 + 3,
    }
    assert ledger.tokens.dataset["held"] == {"generated": 14, "evaluated": 14}
    assert ledger.tokens.worker["w1"]["trained"] == 16
    assert ledger.tokens.version["0"]["generated"] == total["generated"]


async def test_without_verify_the_same_counts_come_without_the_proofs(run: PlayedRun) -> None:
    await run.everywhere()
    proven = await verify(run)
    told = await describe_ledger(run.redis, run.record, Path("nowhere"), verify=False)
    assert (told.groups, told.tokens, told.balanced, told.verified) == (proven.groups, proven.tokens, True, False)


async def test_a_new_run_balances(run: PlayedRun) -> None:
    ledger = await verify(run)
    assert (ledger.problems, ledger.groups.released, ledger.tokens.total["undecided"]) == ([], 0, 0)


Harm = Callable[[PlayedRun], Awaitable[Any]]


async def delete_entries(run: PlayedRun, stream: Any) -> None:
    await run.redis.xtrim(run.keys.stream(stream), maxlen=0, approximate=False)


async def record_again(run: PlayedRun) -> None:
    again = StepIntent(2, [8], 1, 0)
    await run.redis.xadd(run.keys.stream(STEPS), {"m": Codec(StepIntent).encode(again)})


async def train_twice(run: PlayedRun) -> None:
    await run.redis.xadd(run.keys.stream(STEPS), {"m": Codec(StepIntent).encode(StepIntent(3, [2], 2, 0))})
    await run.redis.hset(run.keys.counters, "intended", 3)


async def commit_again(run: PlayedRun) -> None:
    await run.redis.xadd(run.keys.stream(STEPS), {"m": Codec(StepCommit).encode(StepCommit(1, 1, {}))})


async def judge_in_part(run: PlayedRun) -> None:
    """A teacher that judged two of an attempt's three tokens."""
    codec, key = Codec[Attempt](Attempt), run.keys.group(8)
    attempt = codec.decode(await run.redis.hget(key, "0"))
    judged = codec.encode(replace(attempt, teacher_logprobs=np.zeros(2, np.float32)))
    await run.redis.hset(key, "0", judged)
    await run.redis.hincrby(run.keys.counters, "stored_bytes", len(judged) - len(codec.encode(attempt)))


HARMS: dict[str, tuple[Harm, str]] = {
    "a lost prompt": (lambda r: delete_entries(r, PROMPTS), "group 15 is in no place"),
    "a lost attempt": (lambda r: delete_entries(r, ROLLOUTS), "group 13 is in no place; 1 of its attempts"),
    "a lost ready group": (
        lambda r: r.redis.xtrim(r.keys.stream(GROUPS), maxlen=0),
        "group 8 is complete, but no step",
    ),
    "trained and dropped": (lambda r: r.redis.setbit(r.keys.dropped, 2, 1), "group 2: both trained and dropped"),
    "dropped, not settled": (lambda r: r.redis.setbit(r.keys.emitted, 9, 0), "group 9: dropped but not marked"),
    "two intents of a step": (record_again, "step 2 was recorded more than once"),
    "two steps of a group": (train_twice, "group 2: trained by two steps"),
    "two commits": (commit_again, "step 1 is not committed exactly once"),
    "a forgotten mark": (lambda r: r.redis.setbit(r.keys.trained, 1, 0), "group 1: in a recorded step, but not marked"),
    "a false mark": (lambda r: r.redis.setbit(r.keys.trained, 8, 1), "group 8: marked as trained, but in no recorded"),
    "no steps": (lambda r: delete_entries(r, STEPS), "no groups are recorded for step 1, 2"),
    "unreadable": (lambda r: r.redis.xadd(r.keys.stream(STEPS), {"m": b"\xc1"}), "of steps is not a"),
    "released": (lambda r: r.redis.hincrby(r.keys.counters, "released", 1), "groups released, by counter and by id"),
    "trained": (lambda r: r.redis.hincrby(r.keys.counters, "trained", -1), "groups trained and in a step"),
    "dropped": (lambda r: r.redis.hincrby(r.keys.counters, "dropped", 1), "by counter and by bitmap, differ: 3 and 2"),
    "reasons": (lambda r: r.redis.hincrby(r.keys.counters, "dropped:filter", 1), "by counter and by reason, differ"),
    "evaluated": (lambda r: r.redis.hincrby(r.keys.counters, "eval_done", 1), "groups evaluated"),
    "bytes": (lambda r: r.redis.hincrby(r.keys.counters, "stored_bytes", 5), "bytes of stored attempts"),
    "strays": (lambda r: r.redis.setbit(r.keys.dropped, 500, 1), "1 bits of dropped belong to ids"),
    "dead": (lambda r: r.redis.sadd(r.keys.dead_groups, 8), "group 8: kept as dead, but not dropped"),
    "a margin": (
        lambda r: r.redis.hincrby(r.keys.accounts, "generated|worker|w0", 1),
        "tokens that are generated do not add up",
    ),
    "too many decided": (
        lambda r: r.redis.hincrby(r.keys.accounts, "trained|dataset|sums", 1000),
        "more were decided than generated",
    ),
    "tokens of a group": (
        lambda r: r.redis.hincrby(r.keys.tokens(8), "worker|w1", 1),
        "tokens of worker w1: 20 are undecided, but groups have 21",
    ),
    "an attempt": (lambda r: r.redis.hset(r.keys.group(8), "0", b"\xc1"), "group 8: attempt 0 is not an Attempt"),
    "arrays": (lambda r: r.redis.hdel(r.keys.arrays(8), "0"), "group 8: attempt 0 has 3 tokens, and arrays of 0 bytes"),
    "a teacher": (judge_in_part, "group 8: attempt 0 has 3 tokens, of which a teacher judged 2"),
    "an attempt less": (lambda r: r.redis.hdel(r.keys.group(5), "0"), "group 5: its attempts have 4 tokens, but 7"),
}


@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.usefixtures("impatient")
async def test_every_harm_is_found_and_named(run: PlayedRun, harm: str) -> None:
    await run.everywhere()
    act, sentence = HARMS[harm]
    await act(run)
    ledger = await verify(run)
    assert not ledger.balanced
    assert any(sentence in problem for problem in ledger.problems), ledger.problems


@pytest.mark.usefixtures("impatient")
async def test_lost_groups_and_groups_in_two_states_are_told_by_id(run: PlayedRun) -> None:
    await run.everywhere()
    await delete_entries(run, PROMPTS)
    await run.redis.setbit(run.keys.dropped, 2, 1)
    ledger = await describe_ledger(run.redis, run.record, Path("nowhere"), verify=False)
    assert (ledger.lost, ledger.twice, ledger.balanced) == ([15, 16, 17], [2], False)
    assert (ledger.groups.lost, ledger.groups.pending["prompts"]) == (3, 0)


async def test_the_newest_checkpoint_may_not_be_beyond_the_ledger(run: PlayedRun, tmp_path: Path) -> None:
    await run.everywhere()
    for step, owner in ((1, f"{run.record.created:.6f}"), (9, "an earlier run of this name")):
        folder = tmp_path / "r1" / "checkpoints" / f"step_{step:06d}"
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text(json.dumps({"owner": owner, "step": step}))
    assert (await verify(run, tmp_path)).balanced
    beyond = tmp_path / "r1" / "checkpoints" / "step_000002"
    beyond.mkdir()
    (beyond / "manifest.json").write_text(json.dumps({"owner": f"{run.record.created:.6f}", "step": 2}))
    problems = (await verify(run, tmp_path)).problems
    assert len(problems) == 1
    assert problems[0].startswith("the newest checkpoint is of step 2, but the ledger ends at step 1")


async def test_more_groups_than_admission_allows_are_a_problem(redis: Redis) -> None:
    run = await PlayedRun.open(redis, rollout={"max_staleness": 0})
    await run.release(6)
    assert (await verify(run)).problems == ["2 groups are under way beyond admission, and 0 were re-driven"]


async def test_the_ledger_of_a_live_run_balances_at_every_moment(run: PlayedRun) -> None:
    """Groups pass through all places as fast as they can while the ledger is read."""
    step, running = 0, True

    async def play() -> None:
        nonlocal step
        while running:
            first, *_ = await run.release(5)
            await run.drop(first.group_id)
            await asyncio.gather(run.generate(5), run.score(3))
            await run.drop(first.group_id + 1)
            await run.drop(first.group_id + 2, "dead")
            await run.score(100)
            if (await run.redis.xlen(run.ready.key)) - 4 * step >= 8:
                step += 1
                intent = await run.intend(step, 4)
                await run.commit(intent)
                if step % 3 == 0:
                    await run.ledger.forget(run.epoch, intent.group_ids)

    playing = asyncio.create_task(play())
    seen = list[LedgerAnswer]()
    async with asyncio.timeout(60):
        while step < 10 or len(seen) < 10:
            assert not playing.done() or playing.result()
            seen.append(await verify(run))
    running = False
    await playing
    admission = [p for ledger in seen for p in ledger.problems if "admission" in p]
    assert [p for ledger in seen for p in ledger.problems if p not in admission] == []
    assert len({ledger.groups.released for ledger in seen}) > 3
    for ledger in seen:
        groups = ledger.groups
        told = groups.trained + sum(groups.dropped.values()) + groups.dead + sum(groups.pending.values())
        assert told == groups.released


async def test_a_group_that_was_re_driven_while_the_ledger_looked_is_not_lost(
    run: PlayedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    await run.release(1)
    find = place_groups.find_unsettled

    async def blind(*arguments: Any) -> Any:
        monkeypatch.setattr(place_groups, "find_unsettled", find)
        found = await find(*arguments)
        found.prompts.clear()
        return found

    monkeypatch.setattr(place_groups, "find_unsettled", blind)
    ledger = await verify(run)
    assert (ledger.problems, ledger.groups.pending["prompts"]) == ([], 1)


@pytest.mark.slow
async def test_a_million_groups_are_verified_in_seconds(run: PlayedRun) -> None:
    per_step, steps = 1000, 1000
    for begin in range(0, steps, 100):
        async with run.redis.pipeline(transaction=False) as pipe:
            for step in range(begin + 1, begin + 101):
                ids = list(range((step - 1) * per_step, step * per_step))
                pipe.xadd(run.keys.stream(STEPS), {"m": Codec(StepIntent).encode(StepIntent(step, ids, step - 1, 0))})
                pipe.xadd(run.keys.stream(STEPS), {"m": Codec(StepCommit).encode(StepCommit(step, step, {}))})
            await pipe.execute()
    full = b"\xff" * (per_step * steps // 8)
    await run.redis.mset({run.keys.emitted: full, run.keys.trained: full})
    count = per_step * steps
    facts: dict[Any, Any] = {
        "next_group_id": count, "released": count, "trained": count, "step": steps, "intended": steps,
        "forgotten_step": steps, "weight_version": 10**6,
    }  # fmt: skip
    await run.redis.hset(run.keys.counters, mapping=facts)
    begun = time.monotonic()
    ledger = await verify(run)
    assert ledger.groups.trained == count
    assert [p for p in ledger.problems if "admission" not in p] == []
    assert time.monotonic() - begun < 20
