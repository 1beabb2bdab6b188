"""Rows of an sft or dpo run -> ready groups: receive a batch, tokenise it, join and emit each, acknowledge all."""

import asyncio
from collections.abc import Callable

from services.rollout.give_up_group import drop_dead, drop_group
from services.rollout.refusals import GroupRejected
from services.rollout.written_rollout import ready
from shared.await_redis import AwaitRedis
from shared.errors import WireError
from shared.joining import ScoredAttempt, complete
from shared.logs import Log
from shared.messages import Prompt, Rollout
from shared.scripts import Ledger
from shared.streams import Message, Stream
from shared.tasks import end

BATCH = 256
AT_ONCE = 16
"""Rows that talk to Redis at the same time, each on a connection of its own."""
BLOCK_S = 1.0

Row = tuple[Prompt, list[Rollout] | GroupRejected]
Attempts = Callable[[list[Prompt]], list[list[Rollout] | GroupRejected]]
"""The attempts of each row, or why it has none."""


class RowLoop:
    """Serves one run whose answers are written in its rows."""

    def __init__(
        self, prompts: Stream[Prompt], ledger: Ledger, attempts: Attempts, log: Log, redis: AwaitRedis
    ) -> None:
        self._prompts, self._ledger, self._attempts, self._log = prompts, ledger, attempts, log
        self._await_redis = redis
        prompts.on_dead = self._on_dead

    async def run(self) -> None:
        """Work until cancelled. No grace at the end: a row that was joined and not acknowledged is joined once."""
        await self._await_redis(self._prompts.open)
        keeper = asyncio.create_task(self._prompts.keep_leases())
        try:
            while True:
                await self._handle(await self._await_redis(lambda: self._prompts.receive(BATCH, BLOCK_S)))
        finally:
            await end(keeper)

    async def _handle(self, messages: list[Message[Prompt]]) -> None:
        if not messages:
            return
        prompts = [message.body for message in messages]
        rows = list(zip(prompts, await asyncio.to_thread(self._attempts, prompts), strict=True))
        await asyncio.gather(*(self._settle_in_turn(rows[lane::AT_ONCE]) for lane in range(AT_ONCE)))
        # last, so that a crash before it only repeats what counts once
        await self._await_redis(lambda: self._prompts.acknowledge(messages))

    async def _settle_in_turn(self, rows: list[Row]) -> None:
        for prompt, row in rows:
            await self._settle(prompt, row)

    async def _settle(self, prompt: Prompt, row: list[Rollout] | GroupRejected) -> None:
        if isinstance(row, GroupRejected):
            return await self._give_up(prompt, str(row))
        try:
            scored = [complete(attempt) for attempt in row]
        except WireError as error:
            return await self._give_up(prompt, str(error))
        await self._await_redis(lambda: self._join(row, scored))

    async def _join(self, row: list[Rollout], scored: list[ScoredAttempt]) -> None:
        if (await self._ledger.join(scored))[-1].state == "complete":
            await self._ledger.emit((ready(row), sum(one.tokens for one in row)))

    async def _give_up(self, prompt: Prompt, why: str) -> None:
        self._log.warning("row_rejected", run=self._ledger.keys.run, group=prompt.group_id, row=prompt.row, why=why)
        await self._await_redis(lambda: drop_group(self._ledger, prompt, "rejected", why))

    async def _on_dead(self, group_id: int | None, why: str) -> None:
        await drop_dead(self._ledger, self._prompts, self._log, group_id, why)
