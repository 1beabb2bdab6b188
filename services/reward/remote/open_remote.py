"""The address of a reward service -> a reward that scores by it, once the service has answered a health check."""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator

from services.reward.remote.breaker import Breaker
from services.reward.remote.client import RewardClient, open_client
from services.reward.remote.protocol import Rejected, Unavailable
from services.reward.remote.scorer import RemoteScorer
from services.reward.score import Reward
from services.reward.tell import Tell
from shared.errors import RunRejected
from shared.run_settings import RewardSettings

START_PATIENCE_S = 10.0
"""A service that starts together with the run gets this long, or the deadline of a call if that is shorter."""
POLL_S = 0.5


@contextlib.asynccontextmanager
async def open_remote(run: str, settings: RewardSettings, may_reject: bool, tell: Tell) -> AsyncGenerator[Reward]:
    """The remote reward, as long as the block runs.

    Raises:
        RunRejected: the health check fails, unless `may_reject` is False: then the run is under way and an outage
            only lets it wait.
    """
    async with open_client(settings.url, settings.deadline_s) as client:

        async def on_change(available: bool, reason: str) -> None:
            detail = {"url": client.name} if available else {"url": client.name, "error": reason}
            await tell("reward_recovered" if available else "reward_outage", detail)

        await _wait_for(client, min(settings.deadline_s, START_PATIENCE_S), may_reject, tell)
        breaker = Breaker(on_change)
        scorer = RemoteScorer(run, client, breaker, settings.batch_size, settings.max_tries)
        try:
            yield Reward(scorer.score, available=breaker.available)
        finally:
            await scorer.close()


async def _wait_for(client: RewardClient, patience_s: float, may_reject: bool, tell: Tell) -> None:
    until, told = time.monotonic() + patience_s, False
    while True:
        try:
            await client.check_health(patience_s)
            return
        except (Unavailable, Rejected) as error:
            if time.monotonic() + POLL_S > until and may_reject:
                raise RunRejected(
                    f"the reward service at {client.name} fails its health check, GET {client.name.rstrip('/')}/health "
                    f"({error}); start it or correct reward.url"
                ) from error
            if not may_reject and not told:
                await tell("reward_outage", {"url": client.name, "error": str(error)})
                told = True
        await asyncio.sleep(POLL_S)
