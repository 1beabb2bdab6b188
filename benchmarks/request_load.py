"""An engine's address -> requests that keep it busy, from a process of its own, and when each of their tokens came."""

import asyncio
import random
import time
from dataclasses import dataclass, field
from itertools import pairwise
from multiprocessing.connection import Connection

import httpx
from services.rollout.event_lines import event_lines

DEADLINE_S = 120.0


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
    finished: int = 0
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
                sampling = {"max_new_tokens": shape.new_tokens, "ignore_eos": True}
                body = {"input_ids": prompt, "sampling_params": sampling, "stream": is_stream}
                try:
                    await (_follow if is_stream else _wait)(http, body, arrivals)
                except httpx.HTTPError as error:
                    arrivals.lost.append(f"{type(error).__name__} {error}")

        kinds = [True] * shape.streams + [False] * shape.others
        tasks = [asyncio.create_task(ask_again(is_stream)) for is_stream in kinds]
        await asyncio.to_thread(orders.recv)
        over.set()
        await asyncio.gather(*tasks)
    orders.send(arrivals)


async def _follow(http: httpx.AsyncClient, body: dict[str, object], arrivals: Arrivals) -> None:
    times: list[float] = []
    last = ""
    async with http.stream("POST", "/generate", json=body) as answer:
        async for line in event_lines(answer.aiter_bytes()):
            if line.startswith("data: {"):
                times.append(time.monotonic())
                last = line
    arrivals.streams.append(times)
    _count(arrivals, last)


async def _wait(http: httpx.AsyncClient, body: dict[str, object], arrivals: Arrivals) -> None:
    _count(arrivals, (await http.post("/generate", json=body)).text)


def _count(arrivals: Arrivals, answer: str) -> None:
    if '"type":"length"' in answer.replace(" ", ""):
        arrivals.finished += 1
    else:
        arrivals.lost.append(answer[-200:])
