"""Attempts of any groups -> scores by a remote service, in batches."""

from services.reward.remote.batched_calls import BatchedCalls, Limits
from services.reward.remote.breaker import Breaker
from services.reward.remote.client import RewardClient
from services.reward.remote.protocol import encode
from services.reward.score import Score
from shared.messages import Attempt


class RemoteScorer:
    """Scores through a remote service, for as long as an outage may take."""

    def __init__(self, run: str, client: RewardClient, breaker: Breaker, batch_size: int, max_tries: int) -> None:
        wanted = f"the reward service at {client.name} gave no score"
        self._run = run
        self._calls: BatchedCalls[str, Score] = BatchedCalls(
            client.score, breaker, Limits(batch_size, max_tries), wanted
        )

    async def score(self, attempt: Attempt) -> Score:
        """The score of one attempt; ScoringFailed if the service works but gives it none."""
        return await self._calls.ask(encode(self._run, attempt))

    async def close(self) -> None:
        """Give up all calls under way."""
        await self._calls.close()
