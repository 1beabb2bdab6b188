"""What Redis has answered -> what Redis has on its disk: awaited before a checkpoint relies on it."""

import asyncio
import time
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from shared.logs import Log
from shared.topology import Keys

DEADLINE_S = 10.0
POLL_S = 0.01


class LedgerOnDisk:
    """Waits until the ledger of a run survives the end of its Redis server.

    Redis 7.2 and Valkey say when the append-only file is synced (WAITAOF). Older servers only say when it is written
    and no sync of it is waiting (INFO): that survives the end of the server, and of the machine a second later.
    """

    def __init__(self, redis: Redis, keys: Keys, log: Log, deadline_s: float = DEADLINE_S) -> None:
        self._redis, self._keys, self._log, self._deadline_s = redis, keys, log, deadline_s

    async def wait(self, step: int) -> bool:
        """False, with a log line, if all up to the commit of `step` is not on disk before the deadline."""
        try:
            durable = await self._wait_aof(step)
        except ResponseError as error:
            if "unknown command" not in str(error).lower():
                return self._report(step, str(error))
            durable = await self._wait_info()
        return durable or self._report(step, f"not on disk within {self._deadline_s:g} s")

    async def _wait_aof(self, step: int) -> bool:
        """WAITAOF speaks of what its own connection wrote last, so that has to be something after the commit."""
        async with self._redis.client() as connection:
            await connection.hset(self._keys.counters, "checkpointing", str(step))
            answer: Any = await connection.execute_command("WAITAOF", 1, 0, int(self._deadline_s * 1000))
            return int(answer[0]) >= 1

    async def _wait_info(self) -> bool:
        until = time.monotonic() + self._deadline_s
        while True:
            found = await self._redis.info("persistence")
            if not int(found.get("aof_enabled", 0)):
                return self._no_file()
            if not int(found.get("aof_buffer_length", 0)) and not int(found.get("aof_pending_bio_fsync", 0)):
                return True
            if time.monotonic() > until:
                return False
            await asyncio.sleep(POLL_S)

    def _no_file(self) -> bool:
        self._log.warning("ledger_not_durable", run=self._keys.run, reason="Redis has appendonly no")
        return True

    def _report(self, step: int, reason: str) -> bool:
        self._log.warning("ledger_not_on_disk", run=self._keys.run, step=step, reason=reason)
        return False
