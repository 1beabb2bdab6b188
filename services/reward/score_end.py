"""A score -> the last bytes of the attempt's payload, which are all of it that a score changes."""

from typing import Any, cast

import msgpack

from services.reward.score import Score
from shared.messages import Attempt


def score_end(reward: float | None, detail: dict[str, Any]) -> bytes:
    """The encoding of the last two fields of an Attempt: `reward` and `reward_detail`."""
    pairs: list[Any] = ["reward", reward, "reward_detail", detail]
    return b"".join(cast(bytes, msgpack.packb(part, use_bin_type=True)) for part in pairs)


UNSCORED = score_end(None, {})


def end_of(score: Score, payload: bytes) -> bytes | None:
    """What replaces the last len(UNSCORED) bytes of an unscored payload; None if it ends in another way."""
    return score_end(score.value, score.detail) if payload.endswith(UNSCORED) else None


assert tuple(Attempt.__dataclass_fields__)[-2:] == ("reward", "reward_detail"), "a payload ends with its score"
