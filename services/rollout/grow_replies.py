"""Unfinished replies -> complete ones: streamed from an engine, and continued wherever a stream was cut."""

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

from services.rollout.partial_attempt import PartialAttempt, Segment
from services.rollout.read_answers import Sample
from services.rollout.sampler import FIRST_WAIT_S, Sampler, pause
from shared.run_settings import SamplingSettings

T = TypeVar("T")
Growing = tuple[PartialAttempt, Segment]
"""A reply, and the attempt that it is recorded in."""


async def grow_replies(
    input_ids: list[int], sampling: SamplingSettings, sampler: Sampler, replies: Sequence[Growing]
) -> None:
    """Complete those replies to the same tokens that are not complete; all that have nothing yet travel in one request.

    Raises:
        GroupRejected: the engine can never serve this request.
    """
    unfinished = [growing for growing in replies if not growing[1].finish_reason]
    fresh = [growing for growing in unfinished if not growing[1].token_ids]
    begun = [growing for growing in unfinished if growing[1].token_ids]
    work = [_grow(input_ids, sampling, sampler, growing) for growing in begun]
    if fresh:
        work.append(_grow_together(input_ids, sampling, sampler, fresh))
    await all_of(work)


async def all_of(work: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """The results of all; the first failure ends the others and is raised."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(each) for each in work]
    except BaseExceptionGroup as failed:
        raise failed.exceptions[0] from None
    return [task.result() for task in tasks]


async def _grow_together(
    input_ids: list[int], sampling: SamplingSettings, sampler: Sampler, replies: list[Growing]
) -> None:
    await _stream(input_ids, sampling, sampler, replies)
    await all_of([_grow(input_ids, sampling, sampler, growing) for growing in replies])


async def _grow(input_ids: list[int], sampling: SamplingSettings, sampler: Sampler, growing: Growing) -> None:
    attempt, reply = growing
    wait = FIRST_WAIT_S
    while not reply.finish_reason:
        before = len(reply.token_ids)
        left = sampling.max_new_tokens - before
        if left <= 0:
            return attempt.close(reply, "length")
        rest = sampling.model_copy(update={"max_new_tokens": left})
        await _stream(input_ids + reply.token_ids, rest, sampler, [growing])
        wait = FIRST_WAIT_S if len(reply.token_ids) > before else await pause(wait)


async def _stream(input_ids: list[int], sampling: SamplingSettings, sampler: Sampler, replies: list[Growing]) -> None:
    def take(number: int, sample: Sample) -> None:
        attempt, reply = replies[number]
        attempt.take(reply, sample)

    await sampler.stream(input_ids, sampling, len(replies), take)
