"""The stream benchmark at a small size: all groups arrive, no hop is forgotten, tokens are small, nothing stays."""

from redis.asyncio import Redis

from benchmarks.streams import compare, parts, payload, report, sample_rollout, soak
from shared.rollout_parts import join_parts
from shared.topology import GROUPS, PROMPTS, ROLLOUTS, Keys

KEYS = Keys("benchmark")


async def test_every_group_passes_every_hop_and_a_share_of_the_bare_loop_is_reported(redis: Redis) -> None:
    result = await compare(redis, sample_rollout(4, 512), groups=16, groups_per_step=2)
    assert result["groups"] == 16
    assert set(result["hops_ms"]) == {
        "release",
        "receive prompt",
        "forward rollouts",
        "receive attempts",
        "check",
        "join and emit",
        "acknowledge",
        "receive group",
        "intend",
        "fetch",
        "commit",
    }
    assert 0.02 < result["share"] < 2
    assert result["bare_cpu_ms"] / result["real_cpu_ms"] > 0.05
    assert "The path moves" in report({**result, "redis_benchmark": "not installed"})
    counters = {name.decode(): int(value) for name, value in (await redis.hgetall(KEYS.counters)).items()}
    assert counters["emitted"] == counters["trained"] == counters["released"] == 20, "with those of the warm-up"


def test_a_token_takes_at_most_twelve_bytes_and_arrives_as_it_was() -> None:
    rollout = sample_rollout(8, 4096)
    attempt, arrays = parts(rollout)
    assert (len(attempt) + len(arrays)) / 4096 <= 12
    assert abs(len(attempt) + len(arrays) - len(payload(rollout))) < 64, "the bare loop moves as much"
    arrived = join_parts(attempt, arrays)
    assert (arrived.token_ids == rollout.token_ids).all()
    assert (arrived.logprobs == rollout.logprobs).all()


async def test_what_a_checkpoint_covers_leaves_redis(redis: Redis) -> None:
    result = await soak(redis, groups=80, groups_per_step=4)
    assert (result["groups"], list(result["used_memory"])) == (80, ["10%", "50%", "100%"])
    assert int(await redis.hget(KEYS.counters, "stored_bytes") or -1) == 0
    assert [await redis.xlen(KEYS.stream(spec)) for spec in (PROMPTS, ROLLOUTS, GROUPS)] == [0, 0, 0]
    assert not [key async for key in redis.scan_iter(f"{KEYS.group(0)[:-1]}*")]
