"""Steps -> the ledger: an intent before each step, a commit after it, and what a new trainer has to train again.

What else only the one trainer of a run may write goes through here, too: versions, and what leaves Redis.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import cast

from redis.asyncio import Redis

from shared.errors import FencedOut, LedgerBehind, RunRejected
from shared.lineage import Lineage, read_lineage
from shared.messages import GroupReady, MemoryTurn, StepCommit, StepIntent, StepRecord, WeightVersion
from shared.rollback import Rollback, read_rollback
from shared.scripts import Ledger
from shared.streams import Message, Stream
from shared.topology import STEPS, Keys
from shared.version_ledger import Take, VersionRecord, newest_record, read_record, with_announcement, with_takes

PAGE = 1000


@dataclass(frozen=True, slots=True)
class Position:
    """Where the ledger stands: the newest step of each kind."""

    step: int
    """Committed."""
    intended: int
    """Recorded before its training."""
    forgotten: int
    """The groups of the steps up to here have left Redis."""
    told: int
    """The weight version that engines were told of last; -1 for none."""


class StepLedger:
    """The trainer's side of the steps stream of one run. All of it may be repeated.

    Every write raises FencedOut once another trainer took the run over, and LedgerBehind if Redis lost writes.
    """

    def __init__(self, redis: Redis, run: str) -> None:
        self.redis, self.run = redis, run
        self._keys = Keys(run)
        self._steps: Stream[StepRecord] = Stream(redis, run, STEPS)
        self._ledger = Ledger(redis, self._keys)
        self._epoch = 0
        self._announced: tuple[int, VersionRecord] | None = None
        """The version that was announced last, and its record, which nobody else writes."""
        self._recorded: int | None = None
        """The newest version that has a record; None before the first one of this trainer."""

    async def take_over(self) -> None:
        """Become the one trainer that may write here; a version of a step that Redis has lost is taken back."""
        self._epoch = await self._ledger.take_over()

    @property
    def epoch(self) -> int:
        """Larger than that of every trainer that had this run before; 0 until it is taken over."""
        return self._epoch

    async def position(self) -> Position:
        """Where the ledger stands."""
        counts = await self._ledger.counters()
        step, intended, forgotten = (counts.get(name, 0) for name in ("step", "intended", "forgotten_step"))
        return Position(step, intended, forgotten, counts.get("weight_version", -1))

    async def lineage(self) -> Lineage:
        """Which steps went back to which versions."""
        return await read_lineage(self.redis, self._keys)

    async def is_taken_over(self) -> bool:
        """Whether another trainer has taken this run over."""
        return await self._written_epoch() > self._epoch

    async def check(self, done: int, intended: int = 0) -> None:
        """Raise what a write of the step after `done` would raise now; `intended` is the newest one recorded here."""
        epoch = await self._written_epoch()
        if epoch > self._epoch:
            raise FencedOut(f"run {self._keys.run}: another trainer took this run over; this one stops")
        position = await self.position()
        if epoch < self._epoch or position.intended < max(done, intended) or position.step < done:
            raise LedgerBehind(
                f"run {self._keys.run}: Redis lost its last writes: {done} steps are done, and it knows {position.step}"
            )

    async def intend(self, intent: StepIntent, groups: list[Message[GroupReady]], stale: int = 0) -> None:
        """Record what the step will train and acknowledge those groups, in one transaction."""
        await self._ledger.intend(self._epoch, intent, [group.entry_id for group in groups], stale)
        for group in groups:
            group.stream.release(group.entry_id)

    async def roll_back(self, intent: StepIntent, slots: int, asked: Rollback) -> None:
        """Record a step that goes back to an older version, which was asked for; `slots` are the groups of a step."""
        await self._ledger.roll_back(self._epoch, intent, slots, asked)

    async def refuse_rollback(self, asked: Rollback, reason: str) -> None:
        """Say why the run does not go back."""
        await self._ledger.refuse_rollback(self._epoch, asked, reason)

    async def rollback(self) -> Rollback | None:
        """The rollback that was asked for last, and what became of it."""
        return await read_rollback(self.redis, self._keys)

    async def commit(self, intent: StepIntent, metrics: dict[str, float], tokens: int) -> bool:
        """Record a finished step; one that was trained again after a crash is recorded once, and False comes back."""
        commit = StepCommit(intent.step, intent.step, metrics)
        return await self._ledger.commit(self._epoch, commit, intent.group_ids, tokens)

    async def announce(self, version: WeightVersion) -> None:
        """Offer a version to the engines, and begin its record."""
        known = await self._record(version.version)
        record = with_announcement(known, version, time.time())
        # also if the answer is lost: it may be written then
        self._announced, self._recorded = None, max(self._recorded or 0, version.version)
        await self._ledger.announce(self._epoch, version, record)
        self._announced = version.version, record

    async def take_turn(self, turn: MemoryTurn) -> None:
        """Tell the engines whose the shared device memory is."""
        await self._ledger.take_turn(self._epoch, turn)

    async def note_takes(
        self, version: int, takes: Mapping[str, Take], nbytes: int = 0, seconds: Mapping[str, float] | None = None
    ) -> None:
        """Keep what became of an announced version at these engines.

        With the `seconds` and `nbytes` of its publication, which is over then, it counts as served.
        """
        record = await self._record(version)
        if record is None:
            await self.check(0)
            raise LedgerBehind(f"run {self.run}: Redis lost its last writes and does not know version {version}")
        noted = with_takes(record, takes)
        if seconds is not None:
            noted = replace(noted, nbytes=nbytes, seconds=dict(seconds))
        self._announced = None
        await self._ledger.note_version(self._epoch, version, noted, is_served=seconds is not None)
        self._announced = version, noted

    async def _record(self, version: int) -> VersionRecord | None:
        if self._announced is not None and self._announced[0] == version:
            return self._announced[1]
        if self._recorded is None:
            self._recorded = await newest_record(self.redis, self._keys)
        return await read_record(self.redis, self._keys, version) if version <= self._recorded else None

    async def served(self, version: int) -> None:
        """Count a version that no engine is told of as served, which lets the groups of a further step be released."""
        await self._ledger.advance("weight_version", version, self._epoch)

    async def forget(self, intent: StepIntent) -> None:
        """Delete the attempts of a step that a durable checkpoint covers, after those of the step before."""
        await self._ledger.forget(self._epoch, intent.group_ids, intent.step)

    async def intents(self, after: int, until: int | None = None) -> list[StepIntent]:
        """Recorded steps after `after` (and up to `until`), in order.

        Raises:
            RunRejected: a step in between is missing.
        """
        found = [record for record in await self._records(after, until) if isinstance(record, StepIntent)]
        if [intent.step for intent in found] != list(range(after + 1, after + 1 + len(found))):
            raise RunRejected(f"the ledger does not record every step after {after}; start a new run")
        return found

    async def metrics(self, after: int, until: int) -> dict[int, dict[str, float]]:
        """The metrics of committed steps."""
        records = await self._records(after, until)
        return {record.step: record.metrics for record in records if isinstance(record, StepCommit)}

    async def _written_epoch(self) -> int:
        return int(cast(bytes | None, await self.redis.get(self._keys.trainer_epoch)) or 0)

    async def _records(self, after: int, until: int | None) -> list[StepRecord]:
        found: list[StepRecord] = []
        last_id = "0"
        while page := await self._steps.read(last_id, PAGE):
            last_id = page[-1][0]
            found += [record for _, record in page if after < record.step <= (until or record.step)]
        return found
