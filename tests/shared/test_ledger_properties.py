"""Random workers, crashes, copies, lost answers, two trainers: at every moment the ledger says what the model says."""

import asyncio
import copy
from collections.abc import Awaitable, Callable
from typing import cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis

from shared.errors import FencedOut, LedgerBehind
from shared.messages import StepCommit, StepIntent
from shared.redis_connection import connect
from tests.shared.ledger_actors import GROUPS_PER_STEP, Actors
from tests.shared.ledger_model import Model

Move = tuple[str, int, int]
"""Which move, by whom (or how many), and how often: 2 is a call whose first answer was lost."""
WEIGHTS = {
    "release": 3,
    "release_eval": 1,
    "receive_prompts": 3,
    "generate": 5,
    "receive_rollouts": 4,
    "score": 8,
    "score_and_die": 1,
    "give_up_prompt": 1,
    "give_up_attempt": 1,
    "crash_rollout": 1,
    "crash_reward": 1,
    "take_over": 1,
    "receive_groups": 3,
    "intend": 3,
    "commit": 3,
    "drop_ready": 1,
    "give_up_ready": 1,
    "redrive": 2,
    "discard": 1,
    "forget": 1,
}
NAMES = [name for name, weight in WEIGHTS.items() for _ in range(weight)]
moves = st.lists(st.tuples(st.sampled_from(NAMES), st.integers(0, 5), st.integers(1, 2)), min_size=30, max_size=80)


def play(actors: Actors, move: Move) -> Awaitable[None]:
    name, who, times = move
    generating, scoring = actors.generating[who % 3], actors.scoring[who % 3]
    trainer = actors.trainers[who % 2]
    table: dict[str, Callable[[], Awaitable[None]]] = {
        "release": lambda: actors.release(1 + who % 3, False, times),
        "release_eval": lambda: actors.release(1 + who % 2, True, times),
        "receive_prompts": generating.receive,
        "generate": lambda: actors.generate(generating, times),
        "receive_rollouts": scoring.receive,
        "score": lambda: actors.score(scoring, times, acknowledge=True),
        "score_and_die": lambda: actors.score(scoring, times, acknowledge=False),
        "give_up_prompt": lambda: actors.give_up(generating, times),
        "give_up_attempt": lambda: actors.give_up(scoring, times),
        "crash_rollout": lambda: actors.crash(actors.generating, who % 3),
        "crash_reward": lambda: actors.crash(actors.scoring, who % 3),
        "take_over": trainer.take_over,
        "receive_groups": trainer.receive,
        "intend": lambda: trainer.intend(times),
        "commit": lambda: trainer.commit(times),
        "drop_ready": lambda: trainer.drop_ready(times),
        "give_up_ready": lambda: trainer.give_up(times),
        "redrive": lambda: actors.send_again(who, times),
        "discard": lambda: actors.discard(who, times),
        "forget": lambda: trainer.forget(times),
    }
    return table[name]()


async def finish(actors: Actors) -> None:
    """One healthy worker of each kind and one trainer do all that is left."""
    for workers in (actors.generating, actors.scoring):
        for index in range(3):
            await actors.crash(workers, index)
    trainer = actors.trainers[1]
    await trainer.take_over()
    await trainer.commit(1)
    for _ in range(400):
        await actors.generating[0].receive()
        await actors.generate(actors.generating[0], 1)
        await actors.scoring[0].receive()
        await actors.score(actors.scoring[0], 1, acknowledge=True)
        await trainer.receive()
        await trainer.intend(1)
        await trainer.commit(1)
        states = [group.state for group in actors.model.groups.values()]
        if "open" not in states and states.count("emitted") < GROUPS_PER_STEP:
            return
    raise AssertionError(f"groups are left behind: {states}")


async def snapshot(redis: Redis) -> dict[bytes, bytes]:
    """Every key of the database, as a server writes it to disk."""
    return {key: cast(bytes, await redis.dump(key)) for key in await redis.keys()}


async def roll_back(redis: Redis, keys: dict[bytes, bytes]) -> None:
    await redis.flushdb()
    for key, value in keys.items():
        await redis.restore(key, 0, value)


async def expect_behind(actors: Actors, future: Model) -> None:
    """The trainer of a future that Redis forgot can write none of its steps."""
    epoch, ledger, known = actors.trainers[0].epoch, actors.ledger, actors.model
    ids = [group_id for group_id, group in future.groups.items() if group.state == "emitted"][:GROUPS_PER_STEP]
    if len(future.steps) > len(known.steps):
        step = len(future.steps) + 1
        with pytest.raises((LedgerBehind, FencedOut)):
            await ledger.intend(epoch, StepIntent(step, ids, step - 1, step), [])
        with pytest.raises((LedgerBehind, FencedOut)):
            await ledger.commit(epoch, StepCommit(step - 1, step - 1, {}), future.steps[-1], tokens=1)
    elif ids:  # the same step, of groups that were joined or delivered in the moment that is lost
        lost = [group_id for group_id in ids if known.groups.get(group_id) is None]
        if lost:
            with pytest.raises((LedgerBehind, FencedOut)):
                await ledger.intend(epoch, StepIntent(len(known.steps) + 1, lost, 0, 0), ["1-1"])


async def drive_and_roll_back(url: str, script: list[Move], forgotten: list[Move]) -> None:
    redis: Redis = connect(url)
    await redis.flushdb()
    try:
        actors = Actors(redis)
        await actors.open()
        for move in script:
            await play(actors, move)
        kept, keys = copy.deepcopy(actors.model), await snapshot(redis)
        for move in forgotten:
            await play(actors, move)
        await roll_back(redis, keys)
        future, actors.model = actors.model, kept
        await actors.check()
        await expect_behind(actors, future)
        await actors.check()
        await finish(actors)
        await actors.check()
    finally:
        await redis.aclose()


async def drive(url: str, script: list[Move]) -> None:
    redis: Redis = connect(url)
    await redis.flushdb()
    try:
        actors = Actors(redis)
        await actors.open()
        for move in script:
            await play(actors, move)
            await actors.check()
        await finish(actors)
        await actors.check()
    finally:
        await redis.aclose()


@settings(max_examples=60, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(script=moves)
def test_whatever_happens_each_group_is_in_one_state_and_all_counts_agree(redis_url: str, script: list[Move]) -> None:
    asyncio.run(drive(redis_url, script))


@settings(max_examples=30, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(script=moves, forgotten=moves)
def test_a_redis_that_forgot_its_last_moment_goes_on_to_a_balanced_end(
    redis_url: str, script: list[Move], forgotten: list[Move]
) -> None:
    asyncio.run(drive_and_roll_back(redis_url, script, forgotten))


async def test_a_trainer_from_a_future_that_redis_forgot_is_told_so(redis: Redis) -> None:
    actors = Actors(redis)
    await actors.open()
    trainer = actors.trainers[0]
    await actors.release(6, False, 1)
    for _ in range(6):
        await actors.generating[0].receive()
        await actors.generate(actors.generating[0], 1)
    for _ in range(12):
        await actors.scoring[0].receive()
        await actors.score(actors.scoring[0], 1, acknowledge=True)
    await trainer.receive()
    kept, keys = copy.deepcopy(actors.model), await snapshot(redis)
    for _ in range(2):
        await trainer.receive()
        await trainer.intend(1)
        await trainer.commit(1)
    assert actors.model.committed == 2
    await roll_back(redis, keys)
    future, actors.model = actors.model, kept
    first, second = future.steps
    with pytest.raises(LedgerBehind):
        await actors.ledger.commit(trainer.epoch, StepCommit(2, 2, {}), second, tokens=1)
    with pytest.raises(LedgerBehind):
        await actors.ledger.intend(trainer.epoch, StepIntent(3, [5], 2, 3), [])
    with pytest.raises(LedgerBehind):  # its delivery is lost: the entry would come once more
        await actors.ledger.intend(trainer.epoch, StepIntent(1, second, 0, 1), ["1-1", "1-2"])
    await finish(actors)
    assert actors.model.steps[0] == first
    await actors.check()
