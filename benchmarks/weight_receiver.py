"""Announced versions -> weights in a process of its own, through the sidecar's code; what it does besides it is told.

The sidecar's client speaks to SGLang over HTTP. Here its transport ends in this process, at `ReceivedWeights`.
"""

import asyncio
import json
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import httpx
import torch

from benchmarks.plain_broadcast import PlainBroadcast, copy_plainly
from benchmarks.received_weights import ReceivedWeights
from services.rollout.engine_calls import EngineCalls
from services.rollout.engine_update import EngineUpdate
from services.rollout.pull_weights import EngineIdentity, WeightPuller
from shared.logs import Log
from shared.redis_connection import connect
from shared.runs import HEARTBEAT_S, announce
from shared.tasks import end

NAME = "receiver"
NO_EFFECT = (
    "/health",
    "/pause_generation",
    "/continue_generation",
    "/begin_weight_update",
    "/end_weight_update",
    "/flush_cache",
)


class Edge(httpx.AsyncBaseTransport):
    """Where the client's calls end."""

    def __init__(self, weights: ReceivedWeights) -> None:
        self._calls: dict[str, Callable[[dict[str, Any]], Any]] = {
            "/init_weights_update_group": weights.join,
            "/destroy_weights_update_group": weights.leave,
            "/update_weights_from_distributed": weights.receive,
            "/update_weights_from_tensor": weights.take,
            "/weights_checker": lambda body: {"ranks": [{"checksums": weights.checksums()}]},
            **dict.fromkeys(NO_EFFECT, _nothing),
        }

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """One call; 400 where a real engine would say so."""
        body = json.loads(await request.aread() or b"null") or {}
        try:
            answer = await asyncio.to_thread(self._calls[request.url.path], body)
        except RuntimeError as error:
            return httpx.Response(400, text=str(error))
        return httpx.Response(200, json=answer or {})


def receive(orders: Connection, redis_url: str, run: str, device: str) -> None:
    """Follow a run until told `end`; the main function of a process."""
    torch.set_num_threads(1)
    asyncio.run(_receive(orders, redis_url, run, torch.device(device)))


async def _receive(orders: Connection, redis_url: str, run: str, device: torch.device) -> None:
    redis, weights = connect(redis_url), ReceivedWeights(device)
    update = EngineUpdate(EngineCalls("http://receiver", Edge(weights)), "retract", device.type)
    puller = WeightPuller(redis, run, EngineIdentity(NAME, "a", 1), update, Log("engine"))

    async def stay_up() -> None:
        while True:
            await announce(redis, run, f"engine-up/{NAME}")
            await asyncio.sleep(HEARTBEAT_S)

    async def failed() -> None:
        orders.send("failed")

    tasks = [asyncio.create_task(stay_up()), asyncio.create_task(puller.follow(lambda: None, failed))]
    try:
        await asyncio.to_thread(_obey, orders, weights, device)
    finally:
        await end(*tasks)
        await redis.aclose()


def _obey(orders: Connection, weights: ReceivedWeights, device: torch.device) -> None:
    """Copy, or take part in broadcasts, or say how long the parts of receiving took, until told to end."""
    plain: PlainBroadcast | None = None
    while (order := orders.recv()) != "end":
        match order:
            case "seconds":
                orders.send(dict(weights.seconds))
            case ("copy", nbytes):
                orders.send(copy_plainly(nbytes, device))
            case (port, nbytes):
                plain = plain or PlainBroadcast(1, port, device)
                plain.run(nbytes)
                orders.send("received")


def _nothing(body: dict[str, Any]) -> None:
    """A call without effect here: there are no requests and no cache."""
