"""A run's settings -> its reward, beside which a served teacher is asked, once that has answered a health check."""

import contextlib
from collections.abc import AsyncGenerator
from pathlib import Path

from services.reward.remote.await_health import Words, await_health, telling
from services.reward.remote.batched_calls import Limits
from services.reward.remote.breaker import Breaker
from services.reward.remote.client import ServiceClient, open_client
from services.reward.score import Reward
from services.reward.teacher.beside_reward import beside
from services.reward.teacher.served_teacher import ServedTeacher
from services.reward.teacher.vocabulary import check_vocabulary
from services.reward.tell import Tell
from shared.run_settings import RunSettings

WORDS = Words("the teacher", "trainer.distillation.url", "teacher")


@contextlib.asynccontextmanager
async def with_teacher(reward: Reward, settings: RunSettings, may_reject: bool, tell: Tell) -> AsyncGenerator[Reward]:
    """The reward as it is, where the run has no served teacher or trains nothing; else both, as long as the block runs.

    Raises:
        RunRejected: the health check fails or the vocabulary is another one, unless `may_reject` is False: then the
            run is under way, and an outage only lets it wait.
    """
    asked = settings.trainer.distillation
    if not asked.url or settings.evaluates_only:
        yield reward
        return
    async with open_client(ServiceClient, asked.url, asked.deadline_s, WORDS.setting) as client:
        await await_health(client, WORDS, may_reject, tell)
        if may_reject:
            await check_vocabulary(client, Path(settings.model.path), tell)
        breaker = Breaker(telling(client, WORDS, tell))
        teacher = ServedTeacher(client, breaker, Limits(asked.batch_tokens, asked.max_tries))
        try:
            yield beside(reward, teacher)
        finally:
            await teacher.close()
