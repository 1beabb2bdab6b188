"""A Rollout <-> its two parts in Redis: the Attempt, which scoring reads, and the arrays, which training reads too.

The attempt's part is its msgpack encoding. The arrays are the token ids and then the log-probabilities, little-endian,
4 bytes a number; they are written once, and cross the wire once more for whoever needs them.
"""

from functools import cache
from typing import Any, cast

import msgpack
import numpy as np
from numpy.typing import NDArray

from shared.errors import WireError
from shared.messages import MAX_ENTRY_BYTES, Attempt, Codec, Rollout

Parts = tuple[bytes, bytes]
"""The encoded Attempt, and its arrays."""
BYTES_PER_TOKEN = 8
_MAP_16 = 0xDE
"""How msgpack begins a map of 16 to 65,535 pairs; their number follows in two bytes, big-endian."""

assert len(Attempt.__dataclass_fields__) > 15, "the encoding of an Attempt begins as a map of 16 pairs or more"


def arrays_of(rollout: Rollout) -> bytes:
    """WireError if the arrays have not one number for each token, or are over the limit of an entry."""
    ids, logprobs, tokens = rollout.token_ids, rollout.logprobs, rollout.tokens
    if not len(ids) == len(logprobs) == tokens:
        found = f"{len(ids)} token ids and {len(logprobs)} logprobs"
        raise WireError(f"not a Rollout: it has {found}, and a loss mask of {tokens} tokens")
    data = ids.astype("<i4", copy=False).tobytes() + logprobs.astype("<f4", copy=False).tobytes()
    if len(data) > MAX_ENTRY_BYTES:
        raise WireError(f"the arrays of a Rollout take {len(data)} bytes, over the limit of {MAX_ENTRY_BYTES}")
    return data


def join_parts(attempt: bytes, arrays: bytes) -> Rollout:
    """The Rollout, its arrays views of the bytes given; WireError if the parts make none."""
    rollout = _codec().decode(attempt, **_named(arrays))
    if rollout.tokens != len(rollout.token_ids):
        found = f"arrays of {len(rollout.token_ids)} tokens, and a loss mask of {rollout.tokens}"
        raise WireError(f"not a Rollout: it has {found}")
    teacher = rollout.teacher_logprobs
    if teacher is not None and len(teacher) != rollout.tokens:
        found = f"{len(teacher)} log-probabilities of the teacher, and a loss mask of {rollout.tokens}"
        raise WireError(f"not a Rollout: it has {found}")
    return rollout


def encoded_whole(attempt: bytes, arrays: bytes) -> bytes:
    """The encoding of the Rollout, as archives keep it; WireError if the parts make none."""
    if attempt[:1] != bytes([_MAP_16]):
        raise WireError("not a Rollout: its attempt is no map")
    pairs = [part for name, array in _named(arrays).items() for part in (name, array.tobytes())]
    count = int.from_bytes(attempt[1:3], "big") + len(pairs) // 2
    packed = [cast(bytes, msgpack.packb(part, use_bin_type=True)) for part in pairs]
    return b"".join([attempt[:1], count.to_bytes(2, "big"), attempt[3:], *packed])


def _named(arrays: bytes) -> dict[str, NDArray[Any]]:
    if len(arrays) % BYTES_PER_TOKEN:
        raise WireError(f"not a Rollout: its arrays take {len(arrays)} bytes, {BYTES_PER_TOKEN} for each token")
    tokens = len(arrays) // BYTES_PER_TOKEN
    ids, logprobs = np.frombuffer(arrays, "<i4", tokens), np.frombuffer(arrays, "<f4", tokens, 4 * tokens)
    return {"token_ids": ids, "logprobs": logprobs}


@cache
def _codec() -> Codec[Rollout]:
    return Codec(Rollout)
