"""A score -> the last bytes of the attempt's payload, which are all of it that a score changes."""

from typing import Any, cast

import msgpack

from services.reward.score import Score
from shared.messages import MAX_ENTRY_BYTES, Attempt


def score_end(reward: float | None, detail: dict[str, Any], teacher_logprobs: bytes | None) -> bytes:
    """The encoding of the last three fields of an Attempt."""
    pairs: list[Any] = ["reward", reward, "reward_detail", detail, "teacher_logprobs", teacher_logprobs]
    return b"".join(cast(bytes, msgpack.packb(part, use_bin_type=True)) for part in pairs)


UNSCORED = score_end(None, {}, None)


def end_of(score: Score, payload: bytes) -> bytes | None:
    """What replaces the last len(UNSCORED) bytes of an unscored payload; None if it ends in another way, or if the
    two are too large for an entry."""
    if not payload.endswith(UNSCORED):
        return None
    teacher = score.teacher_logprobs
    end = score_end(score.value, score.detail, None if teacher is None else teacher.astype("<f4", copy=False).tobytes())
    return end if len(payload) - len(UNSCORED) + len(end) <= MAX_ENTRY_BYTES else None


assert tuple(Attempt.__dataclass_fields__)[-3:] == ("reward", "reward_detail", "teacher_logprobs"), "it ends a payload"
