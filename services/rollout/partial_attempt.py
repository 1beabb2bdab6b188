"""One attempt that is not finished: its replies and additions so far, what of them is stored, and what is replayed.

An attempt that another worker takes over is repeated from its start: what was recorded is given out again, in order,
and only what comes after it is new.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from services.rollout.read_answers import Sample, append_spans, cut_spans
from shared.messages import Spans, TokenChunk


@dataclass
class Segment:
    """Tokens in a row: one reply of the policy, or one addition."""

    sampled: bool
    token_ids: list[int] = field(default_factory=list[int])
    logprobs: list[float] = field(default_factory=list[float])
    weight_versions: Spans = field(default_factory=list[tuple[int, int]])
    """By token; empty for an addition."""
    finish_reason: str = ""
    """stop or length where a reply is complete."""
    stored: int = 0
    """Tokens of it that are in Redis."""
    closed: bool = False
    """Its end is in Redis."""

    def grow(self, token_ids: Iterable[int], logprobs: Iterable[float], weight_versions: Spans) -> None:
        self.token_ids += token_ids
        self.logprobs += logprobs
        self.weight_versions = append_spans(self.weight_versions, weight_versions)

    def cut(self, length: int) -> None:
        del self.token_ids[length:], self.logprobs[length:]
        self.weight_versions, self.finish_reason = cut_spans(self.weight_versions, 0, length), ""

    def as_sample(self) -> Sample:
        return Sample(self.token_ids, self.logprobs, self.weight_versions, self.finish_reason)

    @property
    def unstored(self) -> int:
        return len(self.token_ids) - self.stored

    @property
    def to_store(self) -> bool:
        return self.unstored > 0 or bool(self.finish_reason and not self.closed)


class PartialAttempt:
    """The record of one attempt; `changed` is called whenever it has something new."""

    def __init__(self, attempt: int, segments: list[Segment], changed: Callable[[], None]) -> None:
        self.attempt = attempt
        self.mismatches = 0
        """How often the generate function did something else than was recorded."""
        self._segments, self._changed = segments, changed
        self._given = 0
        """Segments that the generate function has had."""
        self._cut_at: int | None = None
        """Number of tokens to which the record in Redis is to be cut."""

    def next_reply(self) -> Segment:
        """The reply that the generate function asks for: a recorded one, complete or not, or a new one."""
        if self._is_recorded() and not self._segments[self._given].sampled:
            self._differs()
        if not self._is_recorded():
            self._segments.append(Segment(sampled=True))
        self._given += 1
        return self._segments[self._given - 1]

    def take(self, reply: Segment, sample: Sample) -> None:
        """Add a piece to a reply; a reply that was cut stays unfinished."""
        reply.grow(sample.token_ids, sample.logprobs, sample.weight_versions)
        reply.finish_reason = "" if sample.finish_reason == "abort" else sample.finish_reason
        self._changed()

    def close(self, reply: Segment, finish_reason: str) -> None:
        """A reply ends with what it has."""
        reply.finish_reason = finish_reason
        self._changed()

    def add(self, token_ids: Sequence[int]) -> None:
        """Record tokens of the generate function, or find them recorded."""
        if self._is_recorded():
            recorded = self._segments[self._given]
            if recorded.sampled or recorded.token_ids != list(token_ids):
                self._differs()
        if not self._is_recorded():
            self._segments.append(Segment(False, list(token_ids), [0.0] * len(token_ids)))
        self._given += 1
        self._changed()

    def forget_last(self) -> None:
        """Take the newest reply back: the engine refused it."""
        self._given -= 1
        self._cut(self._given)

    def start_over(self) -> None:
        """Keep nothing: the generate function failed on what was recorded, and would again."""
        self._given = 0
        self._cut(0)

    @property
    def unstored(self) -> int:
        """Tokens that are not in Redis."""
        return sum(segment.unstored for segment in self._segments)

    @property
    def to_store(self) -> bool:
        """There is something that Redis does not know."""
        return self._cut_at is not None or any(segment.to_store for segment in self._segments)

    @property
    def has_ended(self) -> bool:
        """A reply is complete, and Redis does not know it."""
        return any(segment.finish_reason and not segment.closed for segment in self._segments)

    @property
    def tokens(self) -> int:
        return sum(len(segment.token_ids) for segment in self._segments)

    def take_chunks(self) -> list[TokenChunk]:
        """What is to be stored, in order; from now on it counts as stored."""
        chunks = [] if self._cut_at is None else [_chunk(self.attempt, self._cut_at, Segment(sampled=True))]
        at, self._cut_at = 0, None
        for segment in self._segments:
            if segment.to_store:
                chunks.append(_chunk(self.attempt, at + segment.stored, segment))
                segment.stored, segment.closed = len(segment.token_ids), bool(segment.finish_reason)
            at += len(segment.token_ids)
        return chunks

    def store_again(self) -> None:
        """Redis was away, and may have forgotten what it had or not have got the last chunks."""
        self._cut_at = 0
        for segment in self._segments:
            segment.stored, segment.closed = 0, False

    def _is_recorded(self) -> bool:
        return self._given < len(self._segments)

    def _differs(self) -> None:
        self.mismatches += 1
        self._cut(self._given)

    def _cut(self, keep: int) -> None:
        if any(segment.stored for segment in self._segments[keep:]):
            self._cut_at = sum(len(segment.token_ids) for segment in self._segments[:keep])
        del self._segments[keep:]
        self._changed()


def read_chunks(chunks: Iterable[TokenChunk]) -> dict[int, list[Segment]]:
    """Stored chunks, oldest first -> the segments of each attempt.

    A chunk replaces what was stored from its place on, so that to store one twice does no harm. One that leaves a gap
    is passed over: Redis lost what came before it.
    """
    attempts: dict[int, list[Segment]] = {}
    for chunk in chunks:
        segments = attempts.setdefault(chunk.attempt, [])
        length = sum(len(segment.token_ids) for segment in segments)
        if chunk.at > length:
            continue
        _keep(segments, chunk.at)
        if len(chunk.token_ids) or chunk.finish_reason:
            _append(segments, chunk)
    for segment in (segment for segments in attempts.values() for segment in segments):
        segment.stored, segment.closed = len(segment.token_ids), bool(segment.finish_reason)
    return attempts


def _keep(segments: list[Segment], length: int) -> None:
    """Cut a record to a number of tokens."""
    at = 0
    for number, segment in enumerate(segments):
        if at + len(segment.token_ids) > length:
            segment.cut(length - at)
            del segments[number + (1 if segment.token_ids else 0) :]
            return
        at += len(segment.token_ids)


def _append(segments: list[Segment], chunk: TokenChunk) -> None:
    last = segments[-1] if segments else None
    if last is None or not (last.sampled and chunk.sampled) or (last.finish_reason and len(chunk.token_ids)):
        last = Segment(chunk.sampled)
        segments.append(last)
    last.grow(chunk.token_ids.tolist(), chunk.logprobs.tolist(), chunk.weight_versions)
    last.finish_reason = chunk.finish_reason


def _chunk(attempt: int, at: int, segment: Segment) -> TokenChunk:
    start, end = segment.stored, len(segment.token_ids)
    return TokenChunk(
        attempt,
        at,
        np.asarray(segment.token_ids[start:], np.int32),
        np.asarray(segment.logprobs[start:], np.float32),
        cut_spans(segment.weight_versions, start, end),
        segment.sampled,
        segment.finish_reason,
    )
