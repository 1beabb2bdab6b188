"""The atomic steps of the flow as Redis scripts: release, forward, join and settle groups, commit a step."""

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast

from redis.asyncio import Redis
from redis.commands.core import AsyncScript

from shared import lua, weights_lua
from shared.errors import FencedOut, LedgerBehind
from shared.joining import Joined, ScoredAttempt, by_size, pack
from shared.messages import (
    Attempt,
    Codec,
    DeadLetter,
    Event,
    GroupReady,
    MemoryTurn,
    Prompt,
    Rollout,
    StepCommit,
    StepIntent,
    TokenChunk,
    WeightVersion,
)
from shared.rollback import Rollback, encode_rollback
from shared.rollout_parts import arrays_of
from shared.streams import Message, entry_of
from shared.topology import DEAD, EVALS, EVENTS, GROUPS, MEMORY, PROMPTS, ROLLOUTS, STEPS, STREAMS, WEIGHTS, Keys
from shared.version_ledger import VersionRecord, encode_record


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

    async def forward(self, prompt: Message[Prompt], rollouts: Sequence[Rollout], forget: Sequence[str] = ()) -> None:
        """Publish all attempts of a prompt's group, acknowledge the prompt and delete keys, all or nothing.

        The arrays go where the trainer will fetch them, the rest to the stream of attempts. If the prompt is not
        pending any more, because another worker settled it or because Redis lost its delivery, nothing happens; in the
        second case it is delivered again. WireError if an attempt is too large to travel.
        """
        keys, group_id, codec = self.keys, prompt.body.group_id, Codec[Attempt](Attempt)
        names = [prompt.stream.key, keys.stream(ROLLOUTS), keys.arrays(group_id), keys.emitted, keys.dead_groups]
        args: list[Any] = [PROMPTS.group, prompt.entry_id, group_id, secrets.token_hex(8)]
        for rollout in rollouts:
            assert rollout.group_id == group_id, "a prompt is forwarded as its own group"
            pairs = [part for pair in entry_of(codec, rollout).items() for part in pair]
            args += [rollout.attempt, arrays_of(rollout), len(pairs), *pairs]
        await self._call(lua.FORWARD_ROLLOUTS, [*names, keys.counters, *forget], args)
        prompt.stream.release(prompt.entry_id)

    async def join(self, attempts: Sequence[ScoredAttempt], unscored: bool = False) -> list[Joined]:
        """Store attempts, each once, and count their tokens; says of each how its group stands.

        `unscored` gathers the attempts in a hash of their own, for a reward that needs the whole group at once; they
        are accounted when they are scored.
        """
        answers: list[Joined] = []
        for part in by_size(attempts):
            answers += await self._join_part(part, unscored)
        return answers

    async def _join_part(self, attempts: Sequence[ScoredAttempt], unscored: bool) -> list[Joined]:
        keys = self.keys
        names = [keys.emitted, keys.accounts, keys.counters, keys.dead_groups, keys.stream(ROLLOUTS)]
        place, first = keys.unscored if unscored else keys.group, dict[int, int]()
        for one in attempts:
            group_id = one.attempt.group_id
            if group_id not in first:
                first[group_id] = len(names) + 1
                names += [place(group_id), keys.tokens(group_id), keys.arrays(group_id)]
        packed = pack(attempts, first, accounted=not unscored)
        answers = cast(list[int], await self._script(lua.JOIN)(keys=names, args=[packed]))
        return [Joined.read(answer) for answer in answers]

    async def emit(self, *groups: tuple[GroupReady, int]) -> int:
        """Emit complete groups to the trainer, each with its tokens; how many of them were not settled before."""
        codec, args = Codec[GroupReady](GroupReady), list[Any]()
        for group, tokens in groups:
            assert group.kind != "eval", "an evaluation group is tallied"
            args += [group.group_id, codec.encode(group), tokens]
        names = [self.keys.emitted, self.keys.counters, self.keys.stream(GROUPS)]
        return await self._call(lua.EMIT, names, args)

    async def tally(self, group: GroupReady, off_version: bool) -> bool:
        """Emit an evaluation group to the tally of its version; False if it was settled before."""
        keys, group_id, name, attempts = self.keys, group.group_id, group.dataset, len(group.rewards)
        args: list[Any] = [group_id, Codec[GroupReady](GroupReady).encode(group)]
        tally = {"done": 1, "attempts": attempts, "reward": sum(group.rewards), "off_version": float(off_version)}
        for count, amount in tally.items():
            args += [f"{name}|{count}", amount]
        names = [keys.emitted, keys.counters, keys.stream(EVALS), keys.evaluated]
        names += [keys.evaluation(group.pinned_version or 0), keys.tokens(group_id), keys.accounts]
        return bool(await self._call(lua.EVALUATE, [*names, keys.group(group_id), keys.arrays(group_id)], args))

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

    async def roll_back(self, epoch: int, intent: StepIntent, slots: int, asked: Rollback) -> None:
        """Record a step that trains nothing and starts from an older version; to repeat it does nothing.

        `slots` are the groups of a step: they count as released, so that admission has no room for more than before.

        Raises:
            FencedOut: another trainer took over.
            LedgerBehind: the step before is not recorded and committed.
        """
        assert intent.is_rollback, "a step that goes back trains no groups"
        keys, answer = self.keys, replace(asked, state="recorded", step=intent.step)
        names = [keys.trainer_epoch, keys.counters, keys.stream(STEPS), keys.rollbacks, keys.rollback]
        entry = Codec[Any](StepIntent).encode(intent)
        args: list[Any] = [epoch, intent.step, entry, intent.weight_version, slots, encode_rollback(answer)]
        lost = f"what step {intent.step} goes back from"
        self._check_ledger(await self._call(weights_lua.ROLL_BACK, names, args), lost)

    async def refuse_rollback(self, epoch: int, asked: Rollback, reason: str) -> None:
        """Say why a rollback is not done; FencedOut or LedgerBehind as for a step."""
        answer = encode_rollback(replace(asked, state="refused", reason=reason))
        names = [self.keys.trainer_epoch, self.keys.rollback]
        self._check_ledger(await self._call(weights_lua.REFUSE_ROLLBACK, names, [epoch, answer]))

    async def announce(self, epoch: int, version: WeightVersion, record: VersionRecord) -> None:
        """Offer a weight version to the engines, and keep its record; FencedOut or LedgerBehind as for a step."""
        keys, entry = self.keys, Codec[Any](WeightVersion).encode(version)
        names = [keys.trainer_epoch, keys.stream(WEIGHTS), keys.versions]
        args: list[Any] = [epoch, entry, WEIGHTS.keep_newest, version.version, encode_record(record)]
        self._check_ledger(await self._call(weights_lua.ANNOUNCE, names, args))

    async def take_turn(self, epoch: int, turn: MemoryTurn) -> None:
        """Say whose the shared device memory is; FencedOut or LedgerBehind as for a step."""
        entry, names = Codec[Any](MemoryTurn).encode(turn), [self.keys.trainer_epoch, self.keys.stream(MEMORY)]
        self._check_ledger(await self._call(weights_lua.TAKE_TURN, names, [epoch, entry, MEMORY.keep_newest]))

    async def note_version(self, epoch: int, version: int, record: VersionRecord, is_served: bool) -> None:
        """Keep what became of an announced version, and whether it is served; FencedOut or LedgerBehind as for a step.

        One that is served raises the counter weight_version.
        """
        names = [self.keys.trainer_epoch, self.keys.versions, self.keys.counters]
        args: list[Any] = [epoch, version, encode_record(record), int(is_served)]
        self._check_ledger(await self._call(weights_lua.NOTE_VERSION, names, args))

    async def forget(self, epoch: int, group_ids: Sequence[int], step: int = 0) -> None:
        """Delete the attempts of groups that a durable checkpoint covers, and count their step as forgotten.

        Raises:
            FencedOut: another trainer took over.
            LedgerBehind: Redis lost writes, or the step before is not forgotten.
        """
        keys, names = self.keys, [self.keys.trainer_epoch, self.keys.counters]
        for group_id in group_ids:
            names += [keys.group(group_id), keys.arrays(group_id)]
        self._check_ledger(await self._call(lua.FORGET, names, [epoch, step]))

    async def redrive(self, group_id: int, letters: Sequence[tuple[str, DeadLetter]], event: Event) -> bool:
        """Send the dead entries of a group to their streams again and take back its drop; False if it is not dead.

        `letters` are all the group's, by the ids of their entries in the dead letters; without any, nothing happens.
        """
        if not letters:
            return False
        keys = self.keys
        streams = {spec.name: keys.stream(spec) for spec in STREAMS}
        names = [keys.emitted, keys.dropped, keys.counters, keys.stream(DEAD), keys.dead_groups, keys.stream(EVENTS)]
        names += [keys.tokens(group_id), keys.accounts, keys.arrays(group_id)]
        names += [streams[letter.stream] for _, letter in letters]
        emitted = any(letter.stream == GROUPS.name for _, letter in letters)
        args: list[Any] = [group_id, Codec[Event](Event).encode(event), int(emitted), len(letters)]
        args += [*(entry_id for entry_id, _ in letters), *(letter.entry for _, letter in letters)]
        return bool(await self._call(lua.REDRIVE, names, args))

    async def discard(self, group_id: int | None, entry_ids: Sequence[str]) -> int:
        """Delete dead letters and what is kept of their group; the drop stays counted. Returns how many there were."""
        keys, group = self.keys, -1 if group_id is None else group_id
        names = [keys.counters, keys.stream(DEAD), keys.dead_groups, keys.group(group), keys.unscored(group)]
        args = ["" if group_id is None else group_id, *entry_ids]
        return await self._call(lua.DISCARD, [*names, keys.tokens(group), keys.arrays(group)], args)

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
        names += [keys.arrays(group_id)]
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
