"""Token ids -> sampled continuations with their logprobs and weight versions, through the router's /generate."""

import asyncio
import json
import random
from dataclasses import dataclass
from typing import Any, cast

import httpx

from services.rollout.refusals import EngineUnavailable, GroupRejected
from services.rollout.router_connections import RouterConnections
from shared.logs import Log
from shared.messages import Spans
from shared.run_settings import SamplingSettings

FIRST_WAIT_S, LONGEST_WAIT_S = 0.1, 5.0
REFUSED = (400, 413, 422)
"""Statuses that say that this request can never be served; all others but 200 may pass."""
ABORTED = "was aborted"
"""SGLang before 0.5.20 answers 400 with these words to a request that was still queued when all were aborted."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One continuation: every list has one entry for each sampled token."""

    token_ids: list[int]
    logprobs: list[float]
    """At the sampling temperature."""
    weight_versions: Spans
    finish_reason: str
    """stop or length; abort while the continuation is unfinished."""


class Sampler:
    """Asks engines for continuations until it has them; how long that may take is bounded by whoever calls."""

    def __init__(self, router: RouterConnections, log: Log) -> None:
        self._router, self._log = router, log

    async def sample(self, input_ids: list[int], sampling: SamplingSettings, count: int) -> list[Sample]:
        """`count` independent continuations of the same tokens, in one request: the engine reads the prompt once.

        Raises:
            GroupRejected: the engine can never serve this request.
        """
        samples = await self._ask(input_ids, sampling, count)
        if all(sample.finish_reason != "abort" for sample in samples):
            return samples
        return await asyncio.gather(*(self._finish(input_ids, sampling, sample) for sample in samples))

    async def _finish(self, input_ids: list[int], sampling: SamplingSettings, sample: Sample) -> Sample:
        """Continue an aborted continuation from the tokens that it has, as often as it is aborted."""
        wait = FIRST_WAIT_S
        while sample.finish_reason == "abort":
            left = sampling.max_new_tokens - len(sample.token_ids)
            if left <= 0:
                return _joined(sample, Sample([], [], [], "length"))
            rest = sampling.model_copy(update={"max_new_tokens": left})
            (more,) = await self._ask(input_ids + sample.token_ids, rest, 1)
            if not more.token_ids:
                wait = await self._pause(wait)
            sample = _joined(sample, more)
        return sample

    async def _ask(self, input_ids: list[int], sampling: SamplingSettings, count: int) -> list[Sample]:
        # no request id: the router repeats a request when an engine dies, and an engine refuses an id that it knows
        body = {
            "input_ids": input_ids,
            "sampling_params": {**_parameters(sampling), "n": count},
            "return_logprob": True,
        }
        content, wait = json.dumps(body).encode(), FIRST_WAIT_S
        while True:
            try:
                return await self._post(content, count)
            except EngineUnavailable as error:
                self._log.warning("generate_retried", error=str(error), wait_s=wait)
                wait = await self._pause(wait)

    async def _post(self, content: bytes, count: int) -> list[Sample]:
        try:
            answer = await self._router.post("/generate", content)
        except httpx.TransportError as error:
            raise EngineUnavailable(f"the router does not answer: {type(error).__name__} {error}") from error
        if answer.status_code in REFUSED and ABORTED not in answer.text:
            raise GroupRejected(f"the engine refused the request: {answer.text[:500]}")
        if answer.status_code != 200:
            raise EngineUnavailable(f"the router answered {answer.status_code}: {answer.text[:200]}")
        return read_samples(answer.content, count)

    @staticmethod
    async def _pause(wait: float) -> float:
        await asyncio.sleep(wait * random.uniform(0.5, 1.0))
        return min(2 * wait, LONGEST_WAIT_S)


def read_samples(content: bytes, count: int) -> list[Sample]:
    """The body of an answer -> its continuations; EngineUnavailable if it is not what was asked for."""
    try:
        answer = json.loads(content)
        samples = [_read(item) for item in (answer if isinstance(answer, list) else [answer])]
    except (ValueError, KeyError, TypeError) as error:
        raise EngineUnavailable(f"the engine's answer cannot be read: {type(error).__name__} {error}") from error
    if len(samples) != count:
        raise EngineUnavailable(f"{count} continuations were asked for, and {len(samples)} came back")
    return samples


def _read(item: dict[str, Any]) -> Sample:
    meta = item["meta_info"]
    token_ids = cast(list[int], item["output_ids"])
    triples = cast(list[tuple[float, int, Any]], meta.get("output_token_logprobs") or [])
    if [token_id for _, token_id, _ in triples] != token_ids:
        raise ValueError("tokens and logprobs differ")
    versions = _versions(meta, len(token_ids))
    return Sample(token_ids, [logprob for logprob, _, _ in triples], versions, str(meta["finish_reason"]["type"]))


def _versions(meta: dict[str, Any], tokens: int) -> Spans:
    """Spans of versions by token; engines before SGLang 0.5.23 name only the last one."""
    named = meta.get("weight_versions") or [{"version": meta["weight_version"], "start": 0, "end": tokens}]
    if not all(str(span["version"]).isdecimal() for span in named):
        raise ValueError(f"weight version {named[-1]['version']!r} is no number, so no trained version is served yet")
    spans = [(int(span["version"]), span["end"] - span["start"]) for span in named if span["end"] > span["start"]]
    if sum(length for _, length in spans) != tokens:
        raise ValueError("the spans of weight versions do not cover the tokens")
    return spans


def _parameters(sampling: SamplingSettings) -> dict[str, Any]:
    """Sampling parameters in the engine's words; what ends a response stays in it."""
    return {**sampling.model_dump(), "skip_special_tokens": False, "no_stop_trim": True}


def _joined(first: Sample, second: Sample) -> Sample:
    return Sample(
        first.token_ids + second.token_ids,
        first.logprobs + second.logprobs,
        append_spans(first.weight_versions, second.weight_versions),
        second.finish_reason,
    )


def append_spans(spans: Spans, more: Spans) -> Spans:
    """Two run-length codes in a row: `[(3, 2)]` and `[(3, 1), (4, 1)]` -> `[(3, 3), (4, 1)]`."""
    joined = list(spans)
    for value, count in more:
        if joined and joined[-1][0] == value:
            joined[-1] = (value, joined[-1][1] + count)
        elif count:
            joined.append((value, count))
    return joined
