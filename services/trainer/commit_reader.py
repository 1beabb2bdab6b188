"""The ledger of steps -> rows after a step, in order, read once and from where the last reading ended."""

from services.trainer.sinks.sink import Row
from services.trainer.step_ledger import StepLedger
from shared.messages import StepCommit, StepRecord
from shared.streams import Stream

PAGE = 500


class CommitReader:
    """One reader for each sink, since sinks come forward at their own speed."""

    def __init__(self, steps: Stream[StepRecord], ledger: StepLedger) -> None:
        self._steps, self._ledger = steps, ledger
        self._read: tuple[int, str] = (0, "0")
        """A step, and the entry after which there are none but later ones."""

    async def after(self, step: int) -> list[Row]:
        """The next rows after a step; empty if nothing has been committed after it yet, or if they are another's."""
        if await self._ledger.is_taken_over():
            return []
        cursor = self._read[1] if self._read[0] == step else "0"
        while page := await self._steps.read(cursor, PAGE):
            cursor = page[-1][0]
            rows = [Row(one.step, one.metrics) for _, one in page if isinstance(one, StepCommit) and one.step > step]
            self._read = (rows[-1].step if rows else step, cursor)
            if rows:
                return rows
        return []

    async def newest(self) -> int:
        """The last committed step; 0 if there is none."""
        return (await self._ledger.position()).step
