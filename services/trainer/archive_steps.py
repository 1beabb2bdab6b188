"""Recorded steps whose groups are still in Redis -> files of the archive, before anything of them is deleted."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

from redis.asyncio import Redis

from services.trainer.archive import ArchivedStep, read_step, write_step
from services.trainer.fetch_payloads import fetch_parts
from services.trainer.step_ledger import StepLedger
from shared.errors import RunRejected
from shared.messages import StepIntent
from shared.rollout_parts import encoded_whole
from shared.topology import Keys


class StepArchive:
    """The archive of one run; what is in it already is left as it is."""

    def __init__(self, redis: Redis, keys: Keys, ledger: StepLedger, run_folder: Path) -> None:
        self._redis, self._keys, self._ledger, self._folder = redis, keys, ledger, run_folder

    async def write(self, intents: Sequence[StepIntent]) -> None:
        """Write the steps that are not there yet.

        Raises:
            RunRejected: groups of a step are gone from Redis and it was not archived.
        """
        missing = [intent for intent in intents if not await asyncio.to_thread(self._has, intent)]
        if not missing:
            return
        metrics = await self._ledger.metrics(missing[0].step - 1, missing[-1].step)
        for intent in missing:
            groups = await fetch_parts(self._redis, self._keys, intent.group_ids)
            if not all(groups):
                raise RunRejected(
                    f"step {intent.step} cannot be archived: some of its groups are gone from Redis; start a new run"
                )
            payloads = [[encoded_whole(*attempt) for attempt in group] for group in groups]
            step = ArchivedStep(intent, metrics.get(intent.step, {}), payloads)
            await asyncio.to_thread(write_step, self._folder, step)

    def _has(self, intent: StepIntent) -> bool:
        """A file of the same step with other groups comes from a time that Redis has lost."""
        archived = read_step(self._folder, intent.step)
        return archived is not None and archived.intent == intent
