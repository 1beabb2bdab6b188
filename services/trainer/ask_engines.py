"""A trainer that wants its device's memory -> engines that have given theirs away, or their names if they do not."""

import asyncio
import time
from dataclasses import dataclass
from typing import Literal

from services.trainer.step_ledger import StepLedger
from shared.await_redis import AwaitRedis
from shared.errors import SluiceError
from shared.logs import Log
from shared.memory_parts import MemoryPart, read_memory_parts
from shared.messages import MemoryTurn
from shared.topology import Keys

POLL_S = 0.01


class MemoryNotFree(SluiceError):
    """The memory that the trainer needs is in use."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a trainer waits, in seconds."""

    give_s: float
    """For every engine to give its memory away."""
    present_s: float
    """For the sidecars of all engines to be there, when the trainer asks for the first time."""
    engines: int
    """How many of them there are to be; those that are there by then are asked."""


class AskEngines:
    """The trainer's side of the turns of one run."""

    def __init__(self, ledger: StepLedger, patience: Patience, await_redis: AwaitRedis, log: Log) -> None:
        """The ledger must have been taken over."""
        self._ledger, self._patience, self._redis, self._log = ledger, patience, await_redis, log
        self._number, self._is_first = 0, True

    async def ask(self) -> None:
        """Make it the trainer's turn, and wait until no engine has device memory any more.

        Raises:
            MemoryNotFree: an engine has not given it away by the deadline.
            FencedOut, LedgerBehind: see StepLedger.
        """
        begun = time.time()
        turn = await self._begin("trainer", begun + self._patience.give_s)
        while not self._are_there(parts := await self._read(), begun) or self._keepers(parts, turn):
            if time.time() > turn.until:
                keepers = ", ".join(self._keepers(parts, turn))
                raise MemoryNotFree(
                    f"run {self._ledger.run}: the trainer asked for the device's memory, and after"
                    f" {self._patience.give_s:g} s these engines had not given theirs away: {keepers}; look at their"
                    " logs (`sluice logs engine-0`), or raise weights.update_deadline_s"
                )
            await asyncio.sleep(POLL_S)
        self._is_first = False
        seconds = {engine: part.seconds for engine, part in parts.items() if part is not None}
        self._log.info("memory_asked", run=self._ledger.run, turn=turn.turn, engines=seconds, s=time.time() - begun)

    async def give(self) -> None:
        """Make it the engines' turn; FencedOut or LedgerBehind as for a step."""
        await self._begin("engines", 0)

    async def _begin(self, holder: Literal["trainer", "engines"], until: float) -> MemoryTurn:
        self._number += 1
        turn = MemoryTurn(f"{self._ledger.epoch}-{self._number}", holder, time.time(), until)
        await self._redis(lambda: self._ledger.take_turn(turn))
        return turn

    async def _read(self) -> dict[str, MemoryPart | None]:
        return await self._redis(lambda: read_memory_parts(self._ledger.redis, Keys(self._ledger.run)))

    def _are_there(self, parts: dict[str, MemoryPart | None], begun: float) -> bool:
        """An engine that joins a run later launches nothing in the trainer's turn; one of the run before may be up."""
        waited_s = time.time() - begun
        return not self._is_first or len(parts) >= self._patience.engines or waited_s > self._patience.present_s

    def _keepers(self, parts: dict[str, MemoryPart | None], turn: MemoryTurn) -> list[str]:
        return [engine for engine, part in parts.items() if part is None or not part.gave(turn.turn)]
