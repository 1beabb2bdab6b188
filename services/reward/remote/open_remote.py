"""The address of a reward service -> a reward that scores by it, once the service has answered a health check."""

import contextlib
from collections.abc import AsyncGenerator

from services.reward.remote.await_health import Words, await_health, telling
from services.reward.remote.breaker import Breaker
from services.reward.remote.client import RewardClient, open_client
from services.reward.remote.scorer import RemoteScorer
from services.reward.score import Reward
from services.reward.tell import Tell
from shared.run_settings import RewardSettings

WORDS = Words("the reward service", "reward.url", "reward")


@contextlib.asynccontextmanager
async def open_remote(run: str, settings: RewardSettings, may_reject: bool, tell: Tell) -> AsyncGenerator[Reward]:
    """The remote reward, as long as the block runs.

    Raises:
        RunRejected: the health check fails, unless `may_reject` is False: then the run is under way and an outage
            only lets it wait.
    """
    async with open_client(RewardClient, settings.url, settings.deadline_s, WORDS.setting) as client:
        await await_health(client, WORDS, may_reject, tell)
        breaker = Breaker(telling(client, WORDS, tell))
        scorer = RemoteScorer(run, client, breaker, settings.batch_size, settings.max_tries)
        try:
            yield Reward(scorer.score, available=breaker.available)
        finally:
            await scorer.close()
