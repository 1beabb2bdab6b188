"""Steps -> the ledger: an intent before each step, a commit after it, and what a new trainer has to train again."""

from redis.asyncio import Redis

from shared.errors import RunRejected
from shared.messages import GroupReady, StepCommit, StepIntent, StepRecord
from shared.scripts import Ledger
from shared.streams import Message, Stream, forward
from shared.topology import STEPS, Keys

PAGE = 1000


class StepLedger:
    """The trainer's side of the steps stream of one run."""

    def __init__(self, redis: Redis, run: str) -> None:
        self._steps: Stream[StepRecord] = Stream(redis, run, STEPS)
        self._ledger = Ledger(redis, Keys(run))

    async def intend(self, intent: StepIntent, groups: list[Message[GroupReady]]) -> None:
        """Record what the step will train and acknowledge those groups, in one transaction."""
        await forward(groups, self._steps, intent)

    async def commit(self, step: int, metrics: dict[str, float], groups: int, tokens: int) -> None:
        """Record a finished step; one that was trained again after a crash is recorded once."""
        await self._ledger.commit(StepCommit(step, step, metrics), groups, tokens)

    async def intents(self, after: int, until: int | None = None) -> list[StepIntent]:
        """Recorded steps after `after` (and up to `until`), in order.

        Raises:
            RunRejected: a step in between is missing.
        """
        found: list[StepIntent] = []
        last_id = "0"
        while page := await self._steps.read(last_id, PAGE):
            last_id = page[-1][0]
            found += [r for _, r in page if isinstance(r, StepIntent) and after < r.step <= (until or r.step)]
        if [intent.step for intent in found] != list(range(after + 1, after + 1 + len(found))):
            raise RunRejected(f"the ledger does not record every step after {after}; start a new run")
        return found
