"""Token ids -> sampled continuations with their logprobs and weight versions, through the router's /generate."""

import asyncio
import json
import random
from collections.abc import Callable
from typing import Any

import httpx

from services.rollout.read_answers import Continuation, Sample, append_spans, check_status, read_piece, read_samples
from services.rollout.refusals import EngineUnavailable
from services.rollout.router_connections import RouterConnections
from shared.event_lines import event_lines_async
from shared.logs import Log
from shared.run_settings import SamplingSettings

FIRST_WAIT_S, LONGEST_WAIT_S = 0.1, 5.0
Take = Callable[[int, Sample], None]
"""Called with the number of a continuation and its next tokens."""


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
                wait = await pause(wait)
            sample = _joined(sample, more)
        return sample

    async def _ask(self, input_ids: list[int], sampling: SamplingSettings, count: int) -> list[Sample]:
        content, wait = _request(input_ids, sampling, count, stream=False), FIRST_WAIT_S
        while True:
            try:
                return await self._post(content, count)
            except EngineUnavailable as error:
                self._log.warning("generate_retried", error=str(error), wait_s=wait)
                wait = await pause(wait)

    async def _post(self, content: bytes, count: int) -> list[Sample]:
        try:
            answer = await self._router.post("/generate", content)
        except httpx.TransportError as error:
            raise EngineUnavailable(f"the router does not answer: {type(error).__name__} {error}") from error
        if answer.status_code != 200:
            check_status(answer.status_code, answer.text)
        return read_samples(answer.content, count)

    async def stream(self, input_ids: list[int], sampling: SamplingSettings, count: int, take: Take) -> None:
        """Ask once for `count` continuations and hand their tokens over as they come.

        It returns when the answer ends, complete or not: whoever asked sees what is missing, and asks for that.

        Raises:
            GroupRejected: the engine can never serve this request.
        """
        content = _request(input_ids, sampling, count, stream=True)
        growing = [Continuation() for _ in range(count)]
        try:
            async with self._router.stream("/generate", content) as answer:
                if answer.status_code != 200:
                    check_status(answer.status_code, (await answer.aread()).decode(errors="replace"))
                async for line in event_lines_async(answer.aiter_bytes()):
                    if line.startswith("data: {"):
                        take(*read_piece(line.removeprefix("data: "), growing))
        except (httpx.HTTPError, EngineUnavailable) as error:
            self._log.warning("stream_cut", error=f"{type(error).__name__}: {error}".rstrip())


async def pause(wait: float) -> float:
    """Wait between two tries; returns how long to wait the next time."""
    await asyncio.sleep(wait * random.uniform(0.5, 1.0))
    return min(2 * wait, LONGEST_WAIT_S)


def _request(input_ids: list[int], sampling: SamplingSettings, count: int, stream: bool) -> bytes:
    # no request id: the router repeats a request when an engine dies, and an engine refuses an id that it knows
    body: dict[str, Any] = {
        "input_ids": input_ids,
        "sampling_params": {**_parameters(sampling), "n": count},
        "return_logprob": True,
    }
    return json.dumps({**body, "stream": True} if stream else body).encode()


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
