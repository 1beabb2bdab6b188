"""What the ledger of a run must say, worked out in the plainest way, and the comparison with what Redis says."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from redis.asyncio import Redis

from shared.accounts import Margins, undecided
from shared.rollout_parts import join_parts
from shared.topology import GROUPS, PROMPTS, ROLLOUTS, Keys

GROUP_SIZE = 2
Entries = list[tuple[bytes, dict[bytes, bytes]]]


@dataclass
class StoredAttempt:
    """What is scored of an attempt, without its arrays."""

    size: int
    margins: Margins


@dataclass
class Group:
    """One released group: its stored attempts, and what became of it."""

    is_eval: bool
    attempts: dict[int, StoredAttempt] = field(default_factory=dict[int, StoredAttempt])
    arrays: list[int] = field(default_factory=list[int])
    """Bytes of the arrays of each attempt, once the group was forwarded."""
    state: str = "open"
    """open, emitted, intended, trained, evaluated or dropped:<reason>."""
    dead: bool = False
    forgotten: bool = False

    @property
    def dropped(self) -> bool:
        return self.state.startswith("dropped")

    def margins(self) -> Margins:
        total: Counter[str] = Counter()
        for attempt in self.attempts.values():
            total.update(attempt.margins)
        return total


@dataclass
class Model:
    """The run. Every method says what Redis is expected to answer."""

    limit: int
    groups: dict[int, Group] = field(default_factory=dict[int, Group])
    emissions: int = 0
    steps: list[list[int]] = field(default_factory=list[list[int]])
    committed: int = 0
    redriven: int = 0

    def occupied(self) -> int:
        """Groups that were released and not dropped, evaluations aside."""
        return sum(not group.is_eval and not group.dropped for group in self.groups.values())

    def release(self, count: int, is_eval: bool) -> bool:
        if not is_eval and self.occupied() + count > self.limit:
            return False
        for _ in range(count):
            self.groups[len(self.groups)] = Group(is_eval)
        return True

    def forward(self, group_id: int, arrays: list[int]) -> None:
        group = self.groups[group_id]
        if (group.state == "open" or group.dead) and not group.arrays:
            group.arrays = arrays

    def join(self, group_id: int, number: int, attempt: StoredAttempt, reason: str | None) -> None:
        group = self.groups[group_id]
        if group.state == "open" or group.dead:
            group.attempts.setdefault(number, attempt)
        if group.state == "open" and len(group.attempts) == GROUP_SIZE:
            group.state = "evaluated" if group.is_eval else f"dropped:{reason}" if reason else "emitted"
            self.emissions += group.state == "emitted"

    def give_up(self, group_id: int) -> None:
        group = self.groups[group_id]
        if group.state == "open":
            group.state, group.dead = "dropped:dead", not group.is_eval

    def give_up_ready(self, group_id: int, reason: str) -> bool:
        group = self.groups[group_id]
        if group.state != "emitted":
            return False
        group.state, group.dead = f"dropped:{reason}", reason == "dead"
        return True

    def redrive(self, group_id: int, emitted: bool) -> None:
        group = self.groups[group_id]
        group.state, group.dead = "emitted" if emitted else "open", False
        self.redriven += 1

    async def check(self, redis: Redis, keys: Keys) -> None:
        """AssertionError unless Redis says the same."""
        await self._check_counters(redis, keys)
        await self._check_accounts(redis, keys)
        await self._check_places(redis, keys)
        await self._check_arrays(redis, keys)

    async def _check_counters(self, redis: Redis, keys: Keys) -> None:
        train = [group for group in self.groups.values() if not group.is_eval]
        evals = [group for group in self.groups.values() if group.is_eval]
        expected = Counter(released=len(train), eval_released=len(evals), next_group_id=len(self.groups))
        expected.update(redriven=self.redriven, emitted=self.emissions, intended=len(self.steps), step=self.committed)
        expected.update(trained=sum(map(len, self.steps[: self.committed])))
        expected.update(eval_done=sum(group.state == "evaluated" for group in evals))
        for prefix, groups in (("", train), ("eval_", evals)):
            for group in groups:
                if group.dropped:
                    expected.update([f"{prefix}dropped", f"{prefix}{group.state}"])
        counting = [g for g in self.groups.values() if g.dead or not (g.dropped or g.state == "evaluated")]
        kept = [group for group in counting if not group.forgotten]
        expected.update(stored_bytes=sum(a.size for group in kept for a in group.attempts.values()))
        expected.update(stored_bytes=sum(size for group in kept for size in group.arrays))
        raw = cast(dict[bytes, bytes], await redis.hgetall(keys.counters))
        found = {name.decode(): int(value) for name, value in raw.items()}
        found.pop("generated_tokens", None)
        found.pop("trained_tokens", None)
        assert _unlike(found, expected) == {}, _unlike(found, expected)

    async def _check_accounts(self, redis: Redis, keys: Keys) -> None:
        expected: Counter[str] = Counter()
        open_margins: Counter[str] = Counter()
        for group in self.groups.values():
            state = group.state if group.state in ("trained", "evaluated") or group.dropped else ""
            for margin, tokens in group.margins().items():
                expected[f"generated|{margin}"] += tokens
                if state:
                    expected[f"{state}|{margin}"] += tokens
                else:
                    open_margins[margin] += tokens
        raw = cast(dict[bytes, bytes], await redis.hgetall(keys.accounts))
        found = {name.decode(): int(value) for name, value in raw.items()}
        assert _unlike(found, expected) == {}, _unlike(found, expected)
        assert _unlike(undecided(found), open_margins) == {}

    async def _check_places(self, redis: Redis, keys: Keys) -> None:
        """A group that is not decided lies somewhere, and one that is has its bit."""
        async with redis.pipeline(transaction=True) as pipe:
            for spec in (PROMPTS, ROLLOUTS, GROUPS):
                pipe.xrange(keys.stream(spec))
            for group_id in self.groups:
                pipe.hlen(keys.group(group_id))
            for bitmap in (keys.emitted, keys.trained, keys.dropped, keys.evaluated):
                pipe.get(bitmap)
            answers = cast(list[Any], await pipe.execute())
        prompts, rollouts, ready = ({int(f[b"g"]) for _, f in cast(Entries, part)} for part in answers[:3])
        stored = dict(zip(self.groups, answers[3:-4], strict=True))
        settled, trained, dropped, evaluated = (_bits(bitmap) for bitmap in answers[-4:])
        for group_id, group in self.groups.items():
            assert (group_id in settled) == (group.state != "open"), (group_id, group)
            assert (group_id in trained) == (group.state in ("intended", "trained")), (group_id, group)
            assert (group_id in dropped) == group.dropped, (group_id, group)
            assert (group_id in evaluated) == (group.state == "evaluated"), (group_id, group)
            if group.state == "open":
                assert group_id in prompts | rollouts or stored[group_id], f"group {group_id} is lost"
            if group.state == "emitted":
                assert group_id in ready, f"group {group_id} is emitted and on no stream"
                assert stored[group_id] == GROUP_SIZE
            if group.state in ("intended", "trained") and not group.forgotten:
                assert stored[group_id] == GROUP_SIZE

    async def _check_arrays(self, redis: Redis, keys: Keys) -> None:
        """Every score is kept beside the tokens that it was given for: its text names the token that was repeated."""
        async with redis.pipeline(transaction=True) as pipe:
            for group_id in self.groups:
                pipe.hgetall(keys.group(group_id))
                pipe.hgetall(keys.arrays(group_id))
            answers = cast(list[dict[bytes, bytes]], await pipe.execute())
        for attempts, arrays in zip(answers[::2], answers[1::2], strict=True):
            for number, attempt in attempts.items():
                rollout = join_parts(attempt, arrays[number])
                assert {str(token) for token in rollout.token_ids} == {rollout.text}


def _bits(bitmap: bytes | None) -> set[int]:
    return {8 * i + j for i, byte in enumerate(bitmap or b"") for j in range(8) if byte >> (7 - j) & 1}


def _unlike(found: Mapping[str, int], expected: Mapping[str, int]) -> dict[str, tuple[int, int]]:
    """Name -> (found, expected), where they differ; what is not there is 0."""
    pairs = {name: (found.get(name, 0), expected.get(name, 0)) for name in {*found, *expected}}
    return {name: (one, other) for name, (one, other) in pairs.items() if one != other}
