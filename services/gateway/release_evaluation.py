"""Held-out rows -> evaluation groups pinned to a weight version: every row once, in order, for each version due."""

import asyncio
from itertools import accumulate
from typing import Any, cast

from redis.asyncio import Redis

from services.gateway.dataset_rows import DatasetRows
from services.gateway.read_standing import RunStanding
from shared.evaluation import is_due
from shared.messages import Prompt
from shared.run_settings import RunSettings
from shared.scripts import Ledger
from shared.topology import Keys

BATCH = 64
FIELD_PREFIX = "eval:"
"""Cursor fields: `eval:<version>` -> how many of the rows, all evaluation datasets in a line, are released."""


def evaluation_field(version: int) -> str:
    return f"{FIELD_PREFIX}{version}"


async def evaluated_versions(redis: Redis, keys: Keys) -> list[int]:
    """The versions whose evaluation has begun, in order."""
    fields = cast(list[bytes], await redis.hkeys(keys.cursor))
    names = [field.decode() for field in fields]
    return sorted(int(name.removeprefix(FIELD_PREFIX)) for name in names if name.startswith(FIELD_PREFIX))


class EvaluationRelease:
    """The evaluation groups of one run."""

    def __init__(self, ledger: Ledger, token: str, settings: RunSettings, rows: dict[str, DatasetRows]) -> None:
        self._ledger, self._token, self._settings = ledger, token, settings
        self._rows = [(name, rows[name]) for name in settings.eval.datasets]
        self._ends = list(accumulate(len(one) for _, one in self._rows))
        self._sampling = settings.eval.sampling.model_dump()
        self._version: int | None = None
        self._done = 0

    async def release(self, standing: RunStanding) -> int:
        """Release one batch for the newest version if it is due; returns how many groups went out.

        Only the newest version is looked at: engines no longer serve the others.

        Raises:
            FencedOut: another gateway feeds this run.
        """
        version = standing.weight_version
        if version is None or not is_due(self._settings, version):
            return 0
        if version != self._version:
            await self._begin(version)
        count = min(self._ends[-1] - self._done, BATCH)
        if count == 0:
            return 0
        prompts = await asyncio.to_thread(self._prompts, version, standing.next_group_id, count)
        cursor = (evaluation_field(version), str(self._done + count))
        await self._ledger.release(self._token, standing.next_group_id, None, prompts, cursor)
        self._done += count
        return count

    async def _begin(self, version: int) -> None:
        keys, redis = self._ledger.keys, self._ledger.redis
        # before the first group can be scored, the tally has to say how many there are; writing it again is harmless
        totals: dict[Any, Any] = {f"{name}|groups": len(rows) for name, rows in self._rows}
        await redis.hset(keys.evaluation(version), mapping=totals)
        done = cast(bytes | None, await redis.hget(keys.cursor, evaluation_field(version)))
        self._version, self._done = version, int(done or 0)

    def _prompts(self, version: int, first_group_id: int, count: int) -> list[Prompt]:
        return [self._prompt(version, first_group_id + i, self._done + i) for i in range(count)]

    def _prompt(self, version: int, group_id: int, index: int) -> Prompt:
        place = next(i for i, end in enumerate(self._ends) if index < end)
        name, rows = self._rows[place]
        number = index - (self._ends[place] - len(rows))
        row = rows.read(number)
        return Prompt(
            group_id=group_id,
            kind="eval",
            dataset=name,
            row=number,
            prompt=row.prompt,
            group_size=self._settings.eval.group_size,
            label=row.label,
            metadata=row.metadata,
            sampling=self._sampling,
            pinned_version=version,
        )
