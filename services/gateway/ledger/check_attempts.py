"""The stored attempts of undecided groups, decoded -> groups whose tokens are not what their attempts say."""

import asyncio
import time
from collections import Counter
from typing import cast

from redis.asyncio import Redis

from services.gateway.ledger.check_groups import NAMED, Verdict
from services.gateway.ledger.check_tokens import undecided_groups
from services.gateway.ledger.read_records import Records
from services.gateway.ledger.take_snapshot import Snapshot, numbers, take_snapshot
from shared.accounts import Margins, margins
from shared.errors import WireError
from shared.messages import Attempt, Codec
from shared.rollout_parts import BYTES_PER_TOKEN
from shared.topology import Keys

MOST_GROUPS = 10_000
MOST_BYTES = 256 * 2**20
"""What is decoded at most; of more groups every n-th is."""
PAGE = 50
DEADLINE_S = 5.0
AGAIN_S = 0.25
Stored = tuple[dict[bytes, bytes], dict[bytes, bytes], list[int]]
"""A group's attempts and its tokens by margin, of one moment, and how many bytes the arrays of each attempt take."""


async def check_attempts(redis: Redis, keys: Keys, now: Snapshot, records: Records, verdict: Verdict) -> None:
    """A group that is decided meanwhile has no tokens of its own any more; it is looked at again to know."""
    everything = sorted(undecided_groups(now, records))
    sample = _sample(everything, now.count("stored_bytes"))
    wrong = await _compare(redis, keys, sample)
    until = time.monotonic() + DEADLINE_S
    while wrong and time.monotonic() < until:
        await asyncio.sleep(AGAIN_S)
        still = undecided_groups(await take_snapshot(redis, keys), records) & wrong.keys()
        wrong = await _compare(redis, keys, sorted(still))
    told = "all" if len(sample) == len(everything) else f"every {len(everything) // len(sample)}th"
    with verdict.proves(f"stored attempts decode to the tokens of their group: {told} of {len(everything)} groups"):
        _tell(wrong, verdict)


def _tell(wrong: dict[int, str], verdict: Verdict) -> None:
    verdict.problems += [f"group {group_id}: {why}" for group_id, why in sorted(wrong.items())[:NAMED]]
    if len(wrong) > NAMED:
        verdict.problems.append(f"{len(wrong) - NAMED} more groups have tokens that their attempts do not have")


def _sample(group_ids: list[int], stored_bytes: int) -> list[int]:
    """All of them, or so many, evenly spread, that they can be decoded in some seconds."""
    stride = max(len(group_ids) / MOST_GROUPS, stored_bytes / MOST_BYTES, 1)
    return group_ids[:: -int(-stride // 1)]


async def _compare(redis: Redis, keys: Keys, group_ids: list[int]) -> dict[int, str]:
    wrong: dict[int, str] = {}
    for start in range(0, len(group_ids), PAGE):
        part = group_ids[start : start + PAGE]
        async with redis.pipeline(transaction=True) as pipe:
            for group_id in part:
                pipe.hgetall(keys.group(group_id))
                pipe.hgetall(keys.tokens(group_id))
            answers = await pipe.execute()
        pairs = zip(answers[::2], answers[1::2], strict=True)
        async with redis.pipeline(transaction=False) as pipe:
            for group_id, attempts in zip(part, answers[::2], strict=True):
                for attempt in attempts:
                    pipe.hstrlen(keys.arrays(group_id), attempt)
            lengths = iter(cast(list[int], await pipe.execute()))
        stored = [(attempts, tokens, [next(lengths) for _ in attempts]) for attempts, tokens in pairs]
        wrong |= await asyncio.to_thread(_compare_page, part, stored)
    return wrong


def _compare_page(group_ids: list[int], stored: list[Stored]) -> dict[int, str]:
    pairs = zip(group_ids, stored, strict=True)
    return {group_id: why for group_id, group in pairs if (why := _difference(*group))}


def _difference(attempts: dict[bytes, bytes], tokens: dict[bytes, bytes], lengths: list[int]) -> str:
    codec, added = cast(Codec[Attempt], Codec(Attempt)), Counter[str]()
    for (number, payload), length in zip(attempts.items(), lengths, strict=True):
        try:
            attempt = codec.decode(payload)
        except WireError as error:
            return f"attempt {number.decode()} is {error}"
        if length != BYTES_PER_TOKEN * attempt.tokens:
            return f"attempt {number.decode()} has {attempt.tokens} tokens, and arrays of {length} bytes"
        teacher = attempt.teacher_logprobs
        if teacher is not None and len(teacher) != attempt.tokens:
            return f"attempt {number.decode()} has {attempt.tokens} tokens, of which a teacher judged {len(teacher)}"
        added.update(margins(attempt))
    told: Margins = {margin: count for margin, count in numbers(tokens).items() if count}
    seen: Margins = {margin: count for margin, count in added.items() if count}
    if told == seen:
        return ""
    return f"its attempts have {_total(seen)} tokens, but {_total(told)} are counted for it, or by other margins"


def _total(tokens: Margins) -> int:
    return sum(count for margin, count in tokens.items() if margin.startswith("dataset|"))
