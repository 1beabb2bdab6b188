"""A durable checkpoint -> the groups that it covers leave Redis: their hashes, and their entries on the stream."""

from typing import Any, cast

from redis.asyncio import Redis

from services.trainer.step_ledger import StepLedger
from shared.topology import GROUPS, Keys

BATCH = 500


class Retention:
    """Forgets trained groups of one run; safe to repeat after a crash in between."""

    def __init__(self, redis: Redis, keys: Keys, ledger: StepLedger) -> None:
        self._redis, self._keys, self._ledger = redis, keys, ledger
        self._forgotten = 0

    async def forget(self, covered: int) -> None:
        """Delete the groups of all steps up to `covered`."""
        if covered <= self._forgotten:
            return
        done = cast(bytes | None, await self._redis.hget(self._keys.counters, "forgotten_step"))
        intents = await self._ledger.intents(int(done or 0), covered)
        spent = {group_id for intent in intents for group_id in intent.group_ids}
        keys = [self._keys.group(group_id) for group_id in sorted(spent)]
        for start in range(0, len(keys), BATCH):
            await self._redis.unlink(*keys[start : start + BATCH])
        await self._trim(spent)
        await self._redis.hset(self._keys.counters, "forgotten_step", str(covered))
        self._forgotten = covered

    async def _trim(self, spent: set[int]) -> None:
        """The stream holds no more than admission allows and what no checkpoint covers, so one pass is cheap."""
        key, after = self._keys.stream(GROUPS), "-"
        while True:
            entries = cast(list[tuple[bytes, dict[bytes, Any]]], await self._redis.xrange(key, after, count=BATCH))
            if not entries:
                return
            after = f"({entries[-1][0].decode()}"
            old = [entry_id for entry_id, fields in entries if int(fields.get(b"g", -1)) in spent]
            if old:
                await self._redis.xdel(key, *old)
