"""A durable checkpoint -> the groups that it covers leave Redis: their hashes, and their entries on the stream."""

from typing import Any, cast

from redis.asyncio import Redis

from services.trainer.archive_steps import StepArchive
from services.trainer.step_ledger import StepLedger
from shared.errors import LedgerBehind
from shared.topology import GROUPS, Keys

BATCH = 500


class Retention:
    """Forgets trained groups of one run; safe to repeat after a crash in between."""

    def __init__(self, redis: Redis, keys: Keys, ledger: StepLedger, archive: StepArchive | None = None) -> None:
        """`archive` takes every step before its groups are deleted."""
        self._redis, self._keys, self._ledger, self._archive = redis, keys, ledger, archive
        self._forgotten = 0

    async def forget(self, covered: int) -> None:
        """Delete the groups of all steps up to `covered`.

        Raises:
            LedgerBehind: Redis does not record all of these steps any more.
        """
        if covered <= self._forgotten:
            return
        done = (await self._ledger.position()).forgotten
        intents = await self._ledger.intents(done, covered) if done < covered else []
        if done + len(intents) < covered:
            raise LedgerBehind(f"run {self._keys.run}: Redis lost its last writes: step {covered} is not recorded")
        if self._archive is not None:
            await self._archive.write(intents)
        await self._trim({group_id for intent in intents for group_id in intent.group_ids})
        for intent in intents:  # each with its count: Redis may lose a deletion, but then what was counted for it too
            await self._ledger.forget(intent)
        self._forgotten = covered

    async def archive_rest(self) -> None:
        """Archive the steps that stay in Redis when the run ends; their groups stay as well."""
        if self._archive is not None:
            await self._archive.write(await self._ledger.intents((await self._ledger.position()).forgotten))

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
