"""Answers of engines -> samples: tokens of a continuation, whole or in pieces, with logprobs and weight versions."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

from services.rollout.refusals import EngineUnavailable, GroupRejected
from shared.messages import Spans

T = TypeVar("T")
REFUSED = (400, 413, 422)
"""Statuses that say that this request can never be served; all others but 200 may pass."""
ABORTED = "was aborted"
"""SGLang before 0.5.20 answers 400 with these words to a request that was still queued when all were aborted."""
IN_DOUBT = -1
"""No version: it changed between two pieces, so that from there on only the last piece of the answer can tell."""
UNREADABLE = (ValueError, KeyError, TypeError, IndexError)


@dataclass(frozen=True, slots=True)
class Sample:
    """One continuation, or the next piece of one: every list has one entry for each sampled token."""

    token_ids: list[int]
    logprobs: list[float]
    """At the sampling temperature."""
    weight_versions: Spans
    finish_reason: str
    """stop or length; abort where the continuation was cut, empty where more of it is to come."""


def check_status(status: int, text: str) -> None:
    """GroupRejected or EngineUnavailable, unless the engine has taken the request."""
    if status in REFUSED and ABORTED not in text:
        raise GroupRejected(f"the engine refused the request: {text[:500]}")
    if status != 200:
        raise EngineUnavailable(f"the router answered {status}: {text[:200]}")


def read_samples(content: bytes, count: int) -> list[Sample]:
    """The body of an answer -> its continuations; EngineUnavailable if it is not what was asked for."""
    try:
        answer = json.loads(content)
        samples = [_read(item) for item in (answer if isinstance(answer, list) else [answer])]
    except UNREADABLE as error:
        raise EngineUnavailable(f"the engine's answer cannot be read: {type(error).__name__} {error}") from error
    if len(samples) != count:
        raise EngineUnavailable(f"{count} continuations were asked for, and {len(samples)} came back")
    return samples


@dataclass
class Continuation:
    """One continuation of a streamed answer, as much of it as has come."""

    token_ids: list[int] = field(default_factory=list[int])
    logprobs: list[float] = field(default_factory=list[float])
    finish_reason: str = ""
    _certain: int = 0
    """Tokens whose weight version is known."""
    _version: int | None = None
    """What the piece before said that the engine serves."""

    def take(self, item: dict[str, Any]) -> Sample:
        """Add a piece; returns the tokens whose weight version is known now and was not before.

        Engines send what is new, or everything again (`incremental_streaming_output`); the count of tokens tells.
        Spans of versions come with the last piece, and with each one where the sidecar launched the engine. Where they
        are missing, two pieces in a row that name one version have the tokens between them from it.
        """
        meta = cast(dict[str, Any], item["meta_info"])
        finish = str((meta.get("finish_reason") or {}).get("type") or "")
        total, have = int(meta["completion_tokens"]), len(self.token_ids)
        if finish == "abort" and not total:
            self.finish_reason = finish  # it was cut before its first token, and may name no version yet
            return Sample([], [], [], finish)
        token_ids = _new(cast(list[int], item["output_ids"]), have, total, finish)
        triples = cast(list[tuple[float, int, Any]], meta.get("output_token_logprobs") or [])
        triples = _new(triples, have, total, finish)
        if [token_id for _, token_id, _ in triples] != token_ids:
            raise ValueError("tokens and logprobs differ")
        self.token_ids += token_ids
        self.logprobs += [logprob for logprob, _, _ in triples]
        self.finish_reason = finish
        return self._newly_certain(meta, total, finish)

    def _newly_certain(self, meta: dict[str, Any], total: int, finish: str) -> Sample:
        start = self._certain
        if "weight_versions" in meta:
            spans = cut_spans(read_versions(meta, total), start, total)
        else:
            ((version, _),) = read_versions({"weight_version": meta["weight_version"]}, 1)
            if self._version not in (None, version) and not finish:
                self._version = IN_DOUBT
                return Sample([], [], [], "")
            self._version = version
            spans = [(version, total - start)]
        self._certain = total
        return Sample(self.token_ids[start:], self.logprobs[start:], spans, finish)


def read_piece(data: str, growing: Sequence[Continuation]) -> tuple[int, Sample]:
    """One event of a streamed answer -> which continuation it belongs to, and what is new.

    Raises:
        GroupRejected: the engine can never serve this request.
        EngineUnavailable: the engine failed, or the event is not what was asked for.
    """
    try:
        item = json.loads(data)
        if "error" in item:
            error = item["error"]
            check_status(int(error.get("code") or 500), str(error.get("message")))
        reason = item["meta_info"].get("finish_reason") or {}
        if reason.get("status_code"):
            check_status(int(reason["status_code"]), str(reason.get("message")))
        index = int(item.get("index") or 0)
        return index, growing[index].take(item)
    except UNREADABLE as error:
        raise EngineUnavailable(f"the engine's answer cannot be read: {type(error).__name__} {error}") from error


def read_versions(meta: dict[str, Any], tokens: int) -> Spans:
    """Spans of versions by token; engines before SGLang 0.5.23 name only the last one."""
    named = meta.get("weight_versions") or [{"version": meta["weight_version"], "start": 0, "end": tokens}]
    if not all(str(span["version"]).isdecimal() for span in named):
        raise ValueError(f"weight version {named[-1]['version']!r} is no number, so no trained version is served yet")
    spans = [(int(span["version"]), span["end"] - span["start"]) for span in named if span["end"] > span["start"]]
    if sum(length for _, length in spans) != tokens:
        raise ValueError("the spans of weight versions do not cover the tokens")
    return spans


def append_spans(spans: Spans, more: Spans) -> Spans:
    """Two run-length codes in a row: `[(3, 2)]` and `[(3, 1), (4, 1)]` -> `[(3, 3), (4, 1)]`."""
    joined = list(spans)
    for value, count in more:
        if joined and joined[-1][0] == value:
            joined[-1] = (value, joined[-1][1] + count)
        elif count:
            joined.append((value, count))
    return joined


def cut_spans(spans: Spans, start: int, end: int) -> Spans:
    """The part of a run-length code from `start` to before `end`: `[(3, 2), (4, 2)]`, 1, 3 -> `[(3, 1), (4, 1)]`."""
    cut: Spans = []
    at = 0
    for value, count in spans:
        length = min(at + count, end) - max(at, start)
        if length > 0:
            cut.append((value, length))
        at += count
    return cut


def _read(item: dict[str, Any]) -> Sample:
    meta = item["meta_info"]
    token_ids = cast(list[int], item["output_ids"])
    triples = cast(list[tuple[float, int, Any]], meta.get("output_token_logprobs") or [])
    if [token_id for _, token_id, _ in triples] != token_ids:
        raise ValueError("tokens and logprobs differ")
    versions = read_versions(meta, len(token_ids))
    return Sample(token_ids, [logprob for logprob, _, _ in triples], versions, str(meta["finish_reason"]["type"]))


def _new(values: list[T], have: int, total: int, finish: str) -> list[T]:
    """The values of tokens `have` to `total`, from a list of all of them or of the new ones."""
    new = total - have
    if new >= 0 and len(values) >= total:
        return values[have:total]
    if len(values) == new or (finish == "abort" and len(values) == new + 1):
        return values[:new]  # a request that is aborted while it queues repeats its last token
    raise ValueError(f"{len(values)} tokens where there should be {new} more, or {total} in all")
