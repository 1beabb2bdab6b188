"""An engine's address -> requests that keep it busy, from a process of its own, and when each of their tokens came."""

import asyncio
import json
import random
import time
from dataclasses import dataclass, field
from itertools import pairwise
from multiprocessing.connection import Connection
from typing import Any

import httpx

from shared.event_lines import event_lines_async

DEADLINE_S = 120.0
POLL_S = 0.01


@dataclass(frozen=True, slots=True)
class LoadShape:
    """What is asked for, again and again."""

    streams: int
    """Requests at a time whose tokens are followed one by one."""
    others: int
    """Requests at a time beside them."""
    prompt_tokens: int
    new_tokens: int
    vocabulary: int


@dataclass
class Arrivals:
    """What came; times are seconds of the monotonic clock, which all processes of a machine share."""

    streams: list[list[float]] = field(default_factory=list[list[float]])
    """Of each followed request, when its tokens came."""
    begun: int = 0
    """Followed requests whose first token came."""
    finished: int = 0
    continued: int = 0
    """Requests that the engine ended for an update, and that went on from what they had, as in a rollout worker."""
    lost: list[str] = field(default_factory=list[str])
    """Why requests had no answer, or a short one."""

    def gaps(self, begin: float, end: float) -> list[float]:
        """Of each request that was under way in that time, the longest time between two tokens, in seconds."""
        found: list[float] = []
        for times in self.streams:
            across = [later - at for at, later in pairwise(times) if at < end and later > begin]
            found += [max(across)] if across else []
        return found


def keep_busy(orders: Connection, url: str, shape: LoadShape) -> None:
    """Ask until told to end, then send the Arrivals; the main function of a process."""
    asyncio.run(_keep_busy(orders, url, shape))


async def _keep_busy(orders: Connection, url: str, shape: LoadShape) -> None:
    arrivals, numbers, over = Arrivals(), random.Random(0), asyncio.Event()
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=2)
    async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=DEADLINE_S, limits=limits) as http:

        async def ask_again(is_stream: bool) -> None:
            while not over.is_set():
                prompt = [numbers.randrange(10, shape.vocabulary) for _ in range(shape.prompt_tokens)]
                try:
                    await _Request(http, prompt, shape.new_tokens, arrivals).run(is_stream)
                except httpx.HTTPError as error:
                    arrivals.lost.append(f"{type(error).__name__} {error}")

        kinds = [True] * shape.streams + [False] * shape.others
        tasks = [asyncio.create_task(ask_again(is_stream)) for is_stream in kinds]
        while arrivals.begun < shape.streams:
            await asyncio.sleep(POLL_S)
        orders.send("begun")
        await asyncio.to_thread(orders.recv)
        over.set()
        await asyncio.gather(*tasks)
    orders.send(arrivals)


class _Request:
    """One answer, whole: where the engine ends it early, another call goes on from there."""

    def __init__(self, http: httpx.AsyncClient, prompt: list[int], new_tokens: int, arrivals: Arrivals) -> None:
        self._http, self._prompt, self._wanted, self._arrivals = http, prompt, new_tokens, arrivals
        self._tokens, self._times = list[int](), list[float]()
        self._ending = ""

    async def run(self, is_stream: bool) -> None:
        while True:
            sampling = {"max_new_tokens": self._wanted - len(self._tokens), "ignore_eos": True}
            body = {"input_ids": [*self._prompt, *self._tokens], "sampling_params": sampling, "stream": is_stream}
            await (self._follow(body) if is_stream else self._wait(body))
            if self._ending != "abort" or len(self._tokens) == self._wanted:
                break
            self._arrivals.continued += 1
        if is_stream:
            self._arrivals.streams.append(self._times)
        if len(self._tokens) == self._wanted:
            self._arrivals.finished += 1
        else:
            self._arrivals.lost.append(f"{len(self._tokens)} tokens of {self._wanted}, {self._ending or 'no'} ending")

    async def _follow(self, body: dict[str, Any]) -> None:
        async with self._http.stream("POST", "/generate", json=body) as answer:
            async for line in event_lines_async(answer.aiter_bytes()):
                if line.startswith("data: {") and self._take(json.loads(line.removeprefix("data: "))):
                    self._arrivals.begun += not self._times
                    self._times.append(time.monotonic())

    async def _wait(self, body: dict[str, Any]) -> None:
        self._take((await self._http.post("/generate", json=body)).json())

    def _take(self, answer: dict[str, Any]) -> int:
        """How many tokens came; our engines send what is new."""
        reason = answer.get("meta_info", {}).get("finish_reason")
        self._ending = reason["type"] if reason else ""
        self._tokens += answer.get("output_ids", [])
        return len(answer.get("output_ids", []))
