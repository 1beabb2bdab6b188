"""Rollouts -> the log-probabilities of their tokens under a teacher that an SGLang server holds."""

import numpy as np

from services.reward.remote.batched_calls import BatchedCalls, Limits
from services.reward.remote.breaker import Breaker
from services.reward.remote.client import ServiceClient
from services.reward.score import Logprobs, ScoringFailed
from services.reward.teacher.protocol import PATH, Question, question_of, read_answer, request_body
from shared.messages import Rollout


class ServedTeacher:
    """Asks for as long as an outage may take."""

    def __init__(self, client: ServiceClient, breaker: Breaker, limits: Limits) -> None:
        """`limits` are in tokens."""
        self._client = client
        wanted = f"the teacher at {client.name} gave no log-probabilities"
        self._calls: BatchedCalls[Question, Logprobs] = BatchedCalls(self._ask, breaker, limits, wanted)
        self.available = breaker.available

    async def logprobs(self, rollout: Rollout) -> Logprobs:
        """[tokens after the prompt] float32, 0 where a token is not trained; the whole attempt is asked about once.

        Raises:
            ScoringFailed: the server works and does not answer about this attempt.
        """
        question = question_of(rollout)
        if question is None:
            return np.zeros(len(rollout.token_ids), np.float32)
        return await self._calls.ask(question, len(question.token_ids), question.start)

    async def close(self) -> None:
        """Give up all calls under way."""
        await self._calls.close()

    async def _ask(self, questions: list[Question]) -> list[Logprobs | ScoringFailed]:
        return read_answer(await self._client.post(request_body(questions), PATH), questions)
