"""When an evaluation is due, and when its tally is complete."""

from redis.asyncio import Redis

from shared.evaluation import is_complete, is_due, read_tallies
from shared.messages import Event, GroupReady
from shared.run_settings import RunSettings
from shared.scripts import Ledger
from shared.settings import validate
from shared.topology import Keys
from shared.trainer_settings import TrainerSettings

SETTINGS = validate(
    RunSettings,
    {
        "name": "a",
        "model": {"path": "m"},
        "data": {"datasets": [{"name": "d"}]},
        "trainer": {"steps": 25},
        "eval": {"datasets": ["held-out"], "every": 10},
    },
    "run.toml",
)


def test_the_first_every_tenth_and_the_last_version_are_evaluated() -> None:
    assert [version for version in range(26) if is_due(SETTINGS, version)] == [0, 10, 20, 25]
    nothing_trained = SETTINGS.model_copy(update={"trainer": TrainerSettings(steps=0)})
    assert is_due(nothing_trained, 0)


async def test_a_tally_is_complete_when_every_group_is_answered_or_dropped(redis: Redis) -> None:
    keys = Keys("a")
    ledger = Ledger(redis, keys)
    assert not is_complete(SETTINGS, await read_tallies(redis, keys, 10))
    await redis.hset(keys.evaluation(10), "held-out|groups", "2")
    await ledger.tally(GroupReady(1, "eval", "held-out", 0, [3, 3], [1.0, 0.0], 10, 10, 10), off_version=False)
    assert not is_complete(SETTINGS, await read_tallies(redis, keys, 10))
    await ledger.drop(2, "eval", "dead", Event(0.0, "reward", "group_dropped"), (10, "held-out"))
    (tally,) = await read_tallies(redis, keys, 10)
    assert is_complete(SETTINGS, [tally])
    assert (tally.reward_mean, tally.done, tally.dropped) == (0.5, 2, 1)
