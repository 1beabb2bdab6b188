"""The built-in way to generate: one reply for each attempt, all attempts of the group in one request."""

from services.rollout.sampler import Sampler
from services.rollout.session import Session
from shared.run_settings import SamplingSettings


async def single_turn(
    prompt_ids: list[int], sampling: SamplingSettings, sampler: Sampler, sessions: list[Session]
) -> list[str]:
    """Record one reply in every session; returns their texts."""
    samples = await sampler.sample(prompt_ids, sampling, len(sessions))
    return [session.record(sample).text for session, sample in zip(sessions, samples, strict=True)]
