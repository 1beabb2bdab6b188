"""The atomic steps of the flow as Redis scripts: release groups, join attempts, settle a group, commit a step."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

from redis.asyncio import Redis
from redis.commands.core import AsyncScript

from shared import lua
from shared.accounts import Margins
from shared.errors import FencedOut, LedgerBehind
from shared.messages import (
    Codec,
    DeadLetter,
    Event,
    GroupReady,
    Prompt,
    StepCommit,
    StepIntent,
    TokenChunk,
    WeightVersion,
)
from shared.topology import DEAD, EVALS, EVENTS, GROUPS, PROMPTS, ROLLOUTS, STEPS, STREAMS, WEIGHTS, Keys

JoinState = Literal["incomplete", "complete", "settled", "dead"]
"""settled: the group was decided before, and the attempt is not needed; dead: it is kept for a re-drive."""
_JOIN_STATES: tuple[JoinState, ...] = ("incomplete", "complete", "settled", "dead")


TRIP_BYTES = 2**19
Attempt = tuple[int, int, int, bytes, Margins]
"""Group id, group size, number of the attempt, encoded Rollout, its tokens by margin."""


@dataclass(frozen=True, slots=True)
class ScoredEntry:
    """An attempt that is an entry of the stream of attempts, with the score that its payload is to end with.

    Redis puts it together itself, so the arrays of the attempt need not travel once more.
    """

    entry_id: str
    group_id: int
    group_size: int
    attempt: int
    end: bytes
    replaces: int
    """How many bytes of the entry's payload `end` replaces."""
    tokens: Margins


@dataclass(frozen=True, slots=True)
class Joined:
    """What became of an attempt; `stored` is False if a copy was there before, or if its group is settled."""

    state: JoinState
    stored: bool


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
            FencedOut: another feeder holds the lease or released these ids; to repeat a release does nothing.
        """
        codec: Codec[Prompt] = Codec(Prompt)
        counter = "eval_released" if limit is None else "released"
        keys = [self.keys.feeder_lease, self.keys.counters, self.keys.cursor, self.keys.stream(PROMPTS)]
        keys.append(self.keys.eval_groups)
        entries = [codec.encode(prompt) for prompt in prompts]
        first = prompts[0]
        mark = f"{first.pinned_version or 0}|{first.dataset}" if first.kind == "eval" else ""
        args: list[Any] = [token, first_group_id, -1 if limit is None else limit, counter, *cursor, mark, *entries]
        answer = await self._call(lua.RELEASE, keys, args)
        if answer == -1:
            raise FencedOut(f"run {self.keys.run}: another gateway feeds this run; this one stops feeding it")
        return answer != -2

    async def join(
        self, group_id: int, group_size: int, attempt: int, payload: bytes, tokens: Margins | None = None
    ) -> JoinState:
        """Store one scored attempt, once; says whether the group is complete, or was settled before.

        `tokens` are the attempt's, from `shared.accounts.margins`; the first copy that is stored counts them.
        """
        return (await self.join_all([(group_id, group_size, attempt, payload, tokens or {})]))[0]

    async def join_all(self, attempts: Sequence[Attempt], unscored: bool = False) -> list[JoinState]:
        """`join` for many (group_id, group_size, attempt, payload, tokens), in one round trip.

        `unscored` gathers the attempts in a hash of their own, for a reward that needs the whole group at once; they
        are accounted when they are scored.
        """
        return [joined.state for joined in await self.join_each(attempts, unscored)]

    async def join_each(self, attempts: Sequence[Attempt], unscored: bool = False) -> list[Joined]:
        """`join_all`, and whether it was this call that stored the attempt."""
        answers: list[int] = []
        for part in _by_size(attempts):
            answers += await self._join_part(part, unscored)
        return [Joined(_JOIN_STATES[answer % 4], answer >= 4) for answer in answers]

    async def join_entries(self, entries: Sequence[ScoredEntry]) -> list[Joined]:
        """`join_each` for attempts that are on the stream; one that is not there any more counts as settled."""
        keys = self.keys
        names = [*self._join_keys(), keys.stream(ROLLOUTS)]
        args: list[Any] = []
        for one in entries:
            names += [keys.group(one.group_id), keys.tokens(one.group_id)]
            args += [one.entry_id, one.replaces, one.end, one.group_id, one.group_size, one.attempt, len(one.tokens)]
            for margin, count in one.tokens.items():
                args += [margin, count]
        answers = cast(list[int], await self._script(lua.JOIN_ENTRIES)(keys=names, args=args))
        return [Joined(_JOIN_STATES[answer % 4], answer >= 4) for answer in answers]

    def _join_keys(self) -> list[str]:
        return [self.keys.emitted, self.keys.accounts, self.keys.counters, self.keys.dead_groups]

    async def _join_part(self, attempts: Sequence[Attempt], unscored: bool) -> list[int]:
        keys, script = self.keys, self._script(lua.JOIN)
        place = keys.unscored if unscored else keys.group
        async with self.redis.pipeline(transaction=False) as pipe:
            for group_id, group_size, attempt, payload, tokens in attempts:
                counted = {} if unscored else tokens
                args: list[Any] = [payload, group_id, group_size, attempt, len(counted)]
                for margin, count in counted.items():
                    args += [margin, count]
                names = [*self._join_keys(), place(group_id), keys.tokens(group_id)]
                await script(keys=names, args=args, client=pipe)
            return [int(answer) for answer in await pipe.execute()]

    async def emit(self, group: GroupReady, tokens: int, off_version: bool = False) -> bool:
        """Emit a complete group to the trainer, or an evaluation group to its tally; False if it was settled before."""
        codec, keys, group_id = Codec[GroupReady](GroupReady), self.keys, group.group_id
        args: list[Any] = [group_id, codec.encode(group)]
        if group.kind != "eval":
            names = [keys.emitted, keys.counters, keys.stream(GROUPS)]
            return bool(await self._call(lua.EMIT, names, [*args, tokens]))
        name, attempts = group.dataset, len(group.rewards)
        tally = {"done": 1, "attempts": attempts, "reward": sum(group.rewards), "off_version": float(off_version)}
        for count, amount in tally.items():
            args += [f"{name}|{count}", amount]
        names = [keys.emitted, keys.counters, keys.stream(EVALS), keys.evaluated]
        names += [keys.evaluation(group.pinned_version or 0), keys.tokens(group_id), keys.accounts]
        return bool(await self._call(lua.EVALUATE, [*names, keys.group(group_id)], args))

    async def drop(
        self, group_id: int, kind: str, reason: str, event: Event, evaluation: tuple[int, str] | None
    ) -> bool:
        """Count a group as dropped, which returns its slot once; False if it was settled before.

        `evaluation` is (version, dataset) of an evaluation group: the tally counts it as done and dropped.
        Reason "dead" keeps the attempts of a training group for a re-drive; those of others expire.
        """
        return await self._drop(group_id, kind, reason, event, evaluation, "unsettled", "0-0")

    async def drop_ready(self, group_id: int, reason: str, event: Event, entry_id: str) -> bool:
        """Drop a group that was emitted and that no step took, and acknowledge its entry; False if it was decided."""
        return await self._drop(group_id, "train", reason, event, None, "ready", entry_id)

    async def take_over(self) -> int:
        """Become the trainer of this run; whoever was it before is fenced out. Returns the epoch."""
        names = [self.keys.trainer_epoch, self.keys.counters]
        return await self._call(lua.TAKE_OVER, names, [time.time_ns() // 1000])

    async def intend(self, epoch: int, intent: StepIntent, entry_ids: Sequence[str], stale: int = 0) -> None:
        """Record a step's groups as trained by it and acknowledge their entries; to repeat it does nothing.

        `stale` of the groups are older than the run allows; they are counted.

        Raises:
            FencedOut: another trainer took over.
            LedgerBehind: the step before is not recorded, or one of the groups is not there to be trained (any more).
        """
        codec, keys = Codec[Any](StepIntent), self.keys
        names = [keys.trainer_epoch, keys.counters, keys.trained, keys.stream(STEPS), keys.stream(GROUPS)]
        names += [keys.emitted, keys.dropped]
        args: list[Any] = [epoch, intent.step, codec.encode(intent), GROUPS.group, len(intent.group_ids), stale]
        answer = await self._call(lua.INTEND, names, [*args, *intent.group_ids, *entry_ids])
        self._check_ledger(answer, f"what step {intent.step} trains")

    async def commit(self, epoch: int, commit: StepCommit, group_ids: Sequence[int], tokens: int) -> bool:
        """Write a step's commit once; False if this step was committed before (a step re-trained after a crash).

        Raises:
            FencedOut: another trainer took over.
            LedgerBehind: the step is not recorded, or the one before is not committed.
        """
        codec, keys = Codec[Any](StepCommit), self.keys
        names = [keys.trainer_epoch, keys.counters, keys.stream(STEPS), keys.accounts]
        names += [keys.tokens(group_id) for group_id in group_ids]
        args: list[Any] = [epoch, commit.step, codec.encode(commit), len(group_ids), tokens]
        answer = await self._call(lua.COMMIT, names, args)
        return self._check_ledger(answer, f"what step {commit.step} trains") == 1

    async def announce(self, epoch: int, version: WeightVersion) -> None:
        """Offer a weight version to the engines; FencedOut or LedgerBehind as for a step."""
        names, entry = [self.keys.trainer_epoch, self.keys.stream(WEIGHTS)], Codec[Any](WeightVersion).encode(version)
        answer = await self._call(lua.ANNOUNCE, names, [epoch, entry, WEIGHTS.keep_newest])
        self._check_ledger(answer)

    async def forget(self, epoch: int, group_ids: Sequence[int]) -> None:
        """Delete the attempts of groups that a durable checkpoint covers; FencedOut or LedgerBehind as for a step."""
        names = [self.keys.trainer_epoch, self.keys.counters, *(self.keys.group(group_id) for group_id in group_ids)]
        self._check_ledger(await self._call(lua.FORGET, names, [epoch]))

    async def redrive(self, group_id: int, letters: Sequence[tuple[str, DeadLetter]], event: Event) -> bool:
        """Send the dead entries of a group to their streams again and take back its drop; False if it is not dead.

        `letters` are all the group's, by the ids of their entries in the dead letters; without any, nothing happens.
        """
        if not letters:
            return False
        keys = self.keys
        streams = {spec.name: keys.stream(spec) for spec in STREAMS}
        names = [keys.emitted, keys.dropped, keys.counters, keys.stream(DEAD), keys.dead_groups, keys.stream(EVENTS)]
        names += [keys.tokens(group_id), keys.accounts, *(streams[letter.stream] for _, letter in letters)]
        emitted = any(letter.stream == GROUPS.name for _, letter in letters)
        args: list[Any] = [group_id, Codec[Event](Event).encode(event), int(emitted), len(letters)]
        args += [*(entry_id for entry_id, _ in letters), *(letter.entry for _, letter in letters)]
        return bool(await self._call(lua.REDRIVE, names, args))

    async def discard(self, group_id: int | None, entry_ids: Sequence[str]) -> int:
        """Delete dead letters and what is kept of their group; the drop stays counted. Returns how many there were."""
        keys, group = self.keys, -1 if group_id is None else group_id
        names = [keys.counters, keys.stream(DEAD), keys.dead_groups, keys.group(group), keys.unscored(group)]
        args = ["" if group_id is None else group_id, *entry_ids]
        return await self._call(lua.DISCARD, [*names, keys.tokens(group)], args)

    async def append_chunks(self, group_id: int, owner: str, chunks: Sequence[TokenChunk]) -> bool:
        """Store tokens of unfinished attempts; False if another worker has the group now, or it is settled."""
        codec, keys = Codec[TokenChunk](TokenChunk), self.keys
        names = [keys.partial(group_id), keys.partial_owner(group_id), keys.emitted]
        args: list[Any] = [group_id, owner, *(codec.encode(chunk) for chunk in chunks)]
        return bool(await self._call(lua.APPEND_CHUNK, names, args))

    async def advance(self, counter: str, value: int, epoch: int | None = None) -> bool:
        """Raise a counter that never goes back, such as weight_version; False if it is there already.

        With the epoch of a trainer FencedOut or LedgerBehind as for a step.
        """
        args: list[Any] = ["" if epoch is None else epoch, counter, value]
        names = [self.keys.trainer_epoch, self.keys.counters]
        return self._check_ledger(await self._call(lua.ADVANCE, names, args)) == 1

    async def counters(self) -> dict[str, int]:
        """All counts of the run."""
        raw = cast(dict[bytes, bytes], await self.redis.hgetall(self.keys.counters))
        return {name.decode(): int(float(value)) for name, value in raw.items()}

    async def _drop(
        self,
        group_id: int,
        kind: str,
        reason: str,
        event: Event,
        evaluation: tuple[int, str] | None,
        stage: Literal["unsettled", "ready"],
        entry_id: str,
    ) -> bool:
        keys, (version, name) = self.keys, evaluation or (0, "")
        names = [keys.emitted, keys.dropped, keys.trained, keys.counters, keys.stream(EVENTS), keys.tokens(group_id)]
        names += [keys.accounts, keys.group(group_id), keys.dead_groups, keys.evaluation(version)]
        names += [keys.partial(group_id), keys.partial_owner(group_id), keys.stream(GROUPS), keys.unscored(group_id)]
        prefix = "eval_" if kind == "eval" else ""
        args: list[Any] = [group_id, reason, Codec[Event](Event).encode(event), prefix, stage, entry_id, GROUPS.group]
        args += [f"{name}|done", 1, f"{name}|dropped", 1] if evaluation else []
        return bool(await self._call(lua.DROP, names, args))

    def _check_ledger(self, answer: int, lost: str = "its trainer") -> int:
        if answer == -1:
            raise FencedOut(f"run {self.keys.run}: another trainer took this run over; this one stops")
        if answer == -2:
            raise LedgerBehind(f"run {self.keys.run}: Redis lost its last writes and does not know {lost}")
        return answer

    async def _call(self, text: str, keys: list[str], args: list[Any]) -> int:
        return int(await self._script(text)(keys=keys, args=args))

    def _script(self, text: str) -> AsyncScript:
        script = self._scripts.get(text)
        if script is None:
            script = self._scripts[text] = self.redis.register_script(text)
        return script


def _by_size(attempts: Sequence[Attempt]) -> Iterator[list[Attempt]]:
    """Parts that take about TRIP_BYTES: the time to send one grows with the square of its size."""
    part: list[Attempt] = []
    size = 0
    for attempt in attempts:
        part.append(attempt)
        size += len(attempt[3])
        if size >= TRIP_BYTES:
            yield part
            part, size = [], 0
    if part:
        yield part
