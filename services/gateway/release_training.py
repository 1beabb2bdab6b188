"""Rows of the mixed datasets -> training groups on the prompts stream, as far as admission allows."""

import asyncio
from typing import cast

from redis.asyncio import Redis

from services.gateway.check_row import Row
from services.gateway.dataset_rows import DatasetRows
from services.gateway.hold_back import hold_back, limit_when_full
from services.gateway.mix_datasets import Cursor, Draw, draw, dump_cursor, load_cursor
from services.gateway.read_standing import RunStanding
from services.gateway.row_order import RowOrder
from shared.admission import admission_limit, is_full
from shared.messages import TRAINED_KIND, Prompt
from shared.run_settings import RunSettings
from shared.scripts import Ledger
from shared.topology import Keys

BATCH = 64
"""Most rows that one script call releases."""
FIELD = "train"


class TrainingRelease:
    """The training groups of one run. Made anew after a failure: the truth is the cursor in Redis."""

    def __init__(self, ledger: Ledger, token: str, settings: RunSettings, rows: dict[str, DatasetRows]) -> None:
        self._ledger, self._token, self._settings, self._rows = ledger, token, settings, rows
        self._weights = {share.name: share.weight for share in settings.trained_datasets}
        self._sizes = {name: len(rows[name]) for name in self._weights}
        self._orders = {
            name: RowOrder(name, size, settings.seed, settings.data.shuffle) for name, size in self._sizes.items()
        }
        self._sampling = settings.rollout.sampling.model_dump()
        self._cursor: Cursor = {}

    async def load(self, redis: Redis, keys: Keys) -> None:
        """Go on where the last feeder of this run stood."""
        text = cast(bytes | None, await redis.hget(keys.cursor, FIELD))
        self._cursor = load_cursor(text.decode()) if text else {}

    async def release(self, standing: RunStanding) -> int:
        """Release one batch; returns how many groups went out.

        Raises:
            FencedOut: another gateway feeds this run.
        """
        limit = admission_limit(self._settings, standing.weight_version or 0)
        if is_full(self._settings, standing.stored_bytes):
            await hold_back(self._ledger.redis, self._settings, standing)
            limit = min(limit, limit_when_full(self._settings, standing))
        count = min(limit - standing.under_way, BATCH)
        if count <= 0:
            return 0
        draws, behind = draw(self._cursor, self._weights, self._sizes, count)
        prompts = await asyncio.to_thread(self._prompts, draws, standing.next_group_id)
        cursor = (FIELD, dump_cursor(behind))
        if not await self._ledger.release(self._token, standing.next_group_id, limit, prompts, cursor):
            return 0
        self._cursor = behind
        return count

    def _prompts(self, draws: list[Draw], first_group_id: int) -> list[Prompt]:
        return [self._prompt(one, group_id) for group_id, one in enumerate(draws, first_group_id)]

    def _prompt(self, one: Draw, group_id: int) -> Prompt:
        number = self._orders[one.dataset].row(one.epoch, one.position)
        row: Row = self._rows[one.dataset].read(number)
        return Prompt(
            group_id=group_id,
            kind=TRAINED_KIND[self._settings.kind],
            dataset=one.dataset,
            row=number,
            prompt=row.prompt,
            group_size=self._settings.attempts_per_group,
            label=row.label,
            metadata=row.metadata,
            sampling=self._sampling,
            chosen=row.chosen,
            rejected=row.rejected,
        )
