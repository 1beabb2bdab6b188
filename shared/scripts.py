"""The atomic steps of the flow as Redis scripts: release groups, join attempts, settle a group, commit a step."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

from redis.asyncio import Redis
from redis.commands.core import AsyncScript

from shared.errors import FencedOut
from shared.messages import Codec, Event, GroupReady, Prompt, StepCommit
from shared.topology import EVALS, EVENTS, GROUPS, PROMPTS, STEPS, Keys

_RELEASE = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return -1 end
if tonumber(redis.call('HGET', KEYS[2], 'next_group_id') or '0') ~= tonumber(ARGV[2]) then return -1 end
local limit, counter, count = tonumber(ARGV[3]), ARGV[4], #ARGV - 6
if limit >= 0 then
  local released = tonumber(redis.call('HGET', KEYS[2], counter) or '0')
  local dropped = tonumber(redis.call('HGET', KEYS[2], 'dropped') or '0')
  if released - dropped + count > limit then return -2 end
end
for i = 1, count do
  redis.call('XADD', KEYS[4], '*', 'm', ARGV[6 + i], 'g', ARGV[2] + i - 1)
end
redis.call('HINCRBY', KEYS[2], 'next_group_id', count)
redis.call('HINCRBY', KEYS[2], counter, count)
redis.call('HSET', KEYS[3], ARGV[5], ARGV[6])
return count
"""

_JOIN = """
if redis.call('GETBIT', KEYS[2], ARGV[1]) == 1 then return 2 end
redis.call('HSETNX', KEYS[1], ARGV[3], ARGV[4])
if redis.call('HLEN', KEYS[1]) >= tonumber(ARGV[2]) then return 1 end
return 0
"""

_SETTLE = """
if redis.call('SETBIT', KEYS[1], ARGV[1], 1) == 1 then return 0 end
redis.call('XADD', KEYS[3], '*', 'm', ARGV[2], 'g', ARGV[1])
for i = 3, #ARGV, 3 do
  local key = KEYS[2]
  if string.sub(ARGV[i], 1, 1) == 'e' then key = KEYS[4] end
  redis.call('HINCRBYFLOAT', key, ARGV[i + 1], ARGV[i + 2])
end
return 1
"""

_COMMIT = """
if tonumber(redis.call('HGET', KEYS[1], 'step') or '0') >= tonumber(ARGV[1]) then return 0 end
redis.call('XADD', KEYS[2], '*', 'm', ARGV[2])
redis.call('HSET', KEYS[1], 'step', ARGV[1])
redis.call('HINCRBY', KEYS[1], 'trained', ARGV[3])
redis.call('HINCRBY', KEYS[1], 'trained_tokens', ARGV[4])
return 1
"""

_ADVANCE = """
if tonumber(redis.call('HGET', KEYS[1], ARGV[1]) or '-1') >= tonumber(ARGV[2]) then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
return 1
"""

JoinState = Literal["incomplete", "complete", "settled"]
_JOIN_STATES: tuple[JoinState, ...] = ("incomplete", "complete", "settled")


@dataclass(frozen=True, slots=True)
class Ledger:
    """The atomic steps of one run, on one connection."""

    redis: Redis
    keys: Keys
    _scripts: dict[str, AsyncScript] = field(default_factory=dict[str, AsyncScript])

    async def release(
        self, token: str, first_group_id: int, limit: int | None, prompts: list[Prompt], cursor: tuple[str, str]
    ) -> bool:
        """Put groups on the prompts stream and move the feeder's cursor, all or nothing.

        Args:
            token: the fencing token of the feeder's lease.
            first_group_id: the id of prompts[0]; the others follow by one.
            limit: the most groups that may be released and not dropped (design: admission); None for evaluation.
            cursor: field and new value of the feeder's cursor.

        Returns:
            False if the limit leaves no room for all of them.

        Raises:
            FencedOut: another feeder holds the lease or released these ids.
        """
        codec: Codec[Prompt] = Codec(Prompt)
        counter = "eval_released" if limit is None else "released"
        keys = [self.keys.feeder_lease, self.keys.counters, self.keys.cursor, self.keys.stream(PROMPTS)]
        entries = [codec.encode(prompt) for prompt in prompts]
        args: list[Any] = [token, first_group_id, -1 if limit is None else limit, counter, *cursor, *entries]
        answer = await self._call(_RELEASE, keys, args)
        if answer == -1:
            raise FencedOut(f"run {self.keys.run}: another gateway feeds this run; this one stops feeding it")
        return answer != -2

    async def join(self, group_id: int, group_size: int, attempt: int, payload: bytes) -> JoinState:
        """Store one scored attempt, once; says whether the group is complete, or was settled before."""
        keys = [self.keys.group(group_id), self.keys.emitted]
        return _JOIN_STATES[await self._call(_JOIN, keys, [group_id, group_size, attempt, payload])]

    async def join_all(
        self, attempts: Sequence[tuple[int, int, int, bytes]], unscored: bool = False
    ) -> list[JoinState]:
        """`join` for many (group_id, group_size, attempt, payload), in one round trip.

        `unscored` gathers the attempts in a hash of their own, for a reward that needs the whole group at once.
        """
        script, place = self._script(_JOIN), self.keys.unscored if unscored else self.keys.group
        async with self.redis.pipeline(transaction=False) as pipe:
            for group_id, group_size, attempt, payload in attempts:
                args: list[Any] = [group_id, group_size, attempt, payload]
                await script(keys=[place(group_id), self.keys.emitted], args=args, client=pipe)
            return [_JOIN_STATES[int(state)] for state in await pipe.execute()]

    async def emit(self, group: GroupReady, tokens: int, off_version: bool = False) -> bool:
        """Emit a complete group to the trainer, or an evaluation group to its tally; False if it was settled before."""
        codec: Codec[GroupReady] = Codec(GroupReady)
        entry = codec.encode(group)
        if group.kind != "eval":
            return await self._settle(
                GROUPS.name, group.group_id, entry, {"emitted": 1, "generated_tokens": tokens}, {}
            )
        name, attempts = group.dataset, len(group.rewards)
        tally = {f"{name}|done": 1, f"{name}|attempts": attempts, f"{name}|reward": sum(group.rewards)}
        tally[f"{name}|off_version"] = float(off_version)
        version = group.pinned_version or 0
        return await self._settle(EVALS.name, group.group_id, entry, {"eval_done": 1}, tally, version)

    async def drop(
        self, group_id: int, kind: str, reason: str, event: Event, evaluation: tuple[int, str] | None
    ) -> bool:
        """Count a group as dropped, which returns its slot once; False if it was settled before.

        `evaluation` is (version, dataset) of an evaluation group: the tally counts it as done and dropped.
        """
        codec: Codec[Event] = Codec(Event)
        prefix = "eval_" if kind == "eval" else ""
        counts = {f"{prefix}dropped": 1, f"{prefix}dropped:{reason}": 1}
        version, name = evaluation or (0, "")
        tally = {f"{name}|done": 1.0, f"{name}|dropped": 1.0} if evaluation else {}
        return await self._settle(EVENTS.name, group_id, codec.encode(event), counts, tally, version)

    async def commit(self, commit: StepCommit, groups: int, tokens: int) -> bool:
        """Write a step's commit once; False if this step was committed before (a step re-trained after a crash)."""
        codec: Codec[Any] = Codec(StepCommit)
        keys = [self.keys.counters, self.keys.stream(STEPS)]
        return bool(await self._call(_COMMIT, keys, [commit.step, codec.encode(commit), groups, tokens]))

    async def advance(self, counter: str, value: int) -> bool:
        """Raise a counter that never goes back, such as weight_version; False if it is there already."""
        return bool(await self._call(_ADVANCE, [self.keys.counters], [counter, value]))

    async def counters(self) -> dict[str, int]:
        """All counts of the run."""
        raw = cast(dict[bytes, bytes], await self.redis.hgetall(self.keys.counters))
        return {name.decode(): int(float(value)) for name, value in raw.items()}

    async def _settle(
        self,
        stream: str,
        group_id: int,
        entry: bytes,
        counts: Mapping[str, float],
        tally: Mapping[str, float],
        version: int = 0,
    ) -> bool:
        prefix = self.keys.stream(EVENTS).removesuffix(EVENTS.name)
        keys = [self.keys.emitted, self.keys.counters, prefix + stream, self.keys.evaluation(version)]
        args: list[Any] = [group_id, entry]
        for name, amount in counts.items():
            args += ["counter", name, amount]
        for name, amount in tally.items():
            args += ["evaluation", name, amount]
        return bool(await self._call(_SETTLE, keys, args))

    async def _call(self, lua: str, keys: list[str], args: list[Any]) -> int:
        return int(await self._script(lua)(keys=keys, args=args))

    def _script(self, lua: str) -> AsyncScript:
        script = self._scripts.get(lua)
        if script is None:
            script = self._scripts[lua] = self.redis.register_script(lua)
        return script
