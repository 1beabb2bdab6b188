"""The built-in way to generate: one reply for each attempt, all attempts of the group in one request."""

from collections.abc import Sequence

from services.rollout.grow_replies import grow_replies
from services.rollout.partial_attempt import PartialAttempt
from services.rollout.sampler import Sampler
from services.rollout.session import Session
from shared.run_settings import SamplingSettings


async def single_turn(
    prompt_ids: list[int], sampling: SamplingSettings, sampler: Sampler, sessions: list[Session]
) -> list[str]:
    """Record one reply in every session; returns their texts."""
    samples = await sampler.sample(prompt_ids, sampling, len(sessions))
    return [session.record(sample).text for session, sample in zip(sessions, samples, strict=True)]


async def single_turn_kept(
    prompt_ids: list[int],
    sampling: SamplingSettings,
    sampler: Sampler,
    sessions: Sequence[tuple[Session, PartialAttempt]],
) -> list[str]:
    """The same for long replies: recorded as they grow, and continued where they are recorded already."""
    replies = [(partial, partial.next_reply()) for _, partial in sessions]
    await grow_replies(prompt_ids, sampling, sampler, replies)
    return [session.record(reply.as_sample()).text for (session, _), (_, reply) in zip(sessions, replies, strict=True)]
