"""An adapter is served once the engine has shown all of it, as it was sent; else the engine goes on as before."""

import asyncio
import json
from pathlib import Path

import httpx
import pytest
from redis.asyncio import Redis

from services.rollout.adapter_update import AdapterUpdate, adapter_name, prove_adapter
from services.rollout.engine_calls import EngineCalls, EngineRefused, EngineSilent
from services.rollout.engine_update import UpdateFailed
from services.rollout.take_files import TakeFiles
from services.rollout.update_progress import UpdateProgress
from shared.enrolment import Part
from shared.logs import Log
from shared.messages import Rendezvous, WeightVersion
from shared.topology import Keys

SENT = {"a": "01", "b": "02"}
ANNOUNCED = WeightVersion(7, 7, [], "checksum", SENT, Rendezvous("", 0, "r1-v7-beef", "files", 0, 2e9))
GO = Part("go", "r1-v7-beef", "life", 1)


class Ready(TakeFiles):
    """Files that are on this host already."""

    def __init__(self) -> None:
        self.released = 0

    @property
    def path(self) -> Path:
        return Path("/versions/7")

    async def prepare(self, announced: WeightVersion, part: Part) -> None:
        return

    def release(self) -> None:
        self.released += 1


class Server:
    """Says what it holds, and notes what it is asked."""

    def __init__(self, held: list[dict[str, str]], refuses: str = "", silent: str = "") -> None:
        self.held, self.refuses, self.silent = held, refuses, silent
        self.asked: list[tuple[str, object]] = []

    def answer(self, request: httpx.Request) -> httpx.Response:
        self.asked.append((request.url.path, json.loads(request.content)))
        if request.url.path == self.silent:
            raise httpx.ReadTimeout("late")
        status = 400 if request.url.path == self.refuses else 200
        return httpx.Response(status, json={"ranks": [{"checksums": rank} for rank in self.held]})

    def update(self) -> AdapterUpdate:
        return AdapterUpdate(EngineCalls("http://engine", httpx.MockTransport(self.answer)), Ready())


async def run(redis: Redis, update: AdapterUpdate) -> int:
    progress = UpdateProgress(redis, Keys("r1"), 7, "engine-a", GO, Log("engine"))
    async with asyncio.timeout(5), progress.told():
        return await update.run(ANNOUNCED, GO, progress)


async def test_a_proven_adapter_is_served_and_no_request_is_touched(redis: Redis) -> None:
    server = Server([SENT, SENT])
    update = server.update()
    assert await run(redis, update) == 0
    assert server.asked == [
        ("/load_lora_adapter", {"lora_name": "7-beef", "lora_path": "/versions/7"}),
        ("/weights_checker", {"action": "adapter:7-beef"}),
        ("/update_weight_version", {"new_version": "7-beef", "abort_all_requests": False}),
    ]
    assert (update.unfinished, update.files.released) == (False, 1)  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("held", [{"a": "01"}, {"a": "01", "b": "03"}, {**SENT, "c": "04"}])
async def test_an_adapter_that_is_not_what_was_sent_is_not_served(redis: Redis, held: dict[str, str]) -> None:
    server = Server([SENT, held])
    update = server.update()
    with pytest.raises(UpdateFailed, match=r"1 of 2 tensors of the adapter differ from the trainer's, such as [bc]"):
        await run(redis, update)
    assert [path for path, _ in server.asked] == ["/load_lora_adapter", "/weights_checker"]
    assert not update.unfinished


async def test_an_engine_that_cannot_show_its_adapters_serves_none(redis: Redis) -> None:
    server = Server([], refuses="/weights_checker")
    with pytest.raises(EngineRefused):
        await run(redis, server.update())
    assert "/update_weight_version" not in [path for path, _ in server.asked]


async def test_an_engine_that_does_not_answer_is_of_no_more_use(redis: Redis) -> None:
    update = Server([], silent="/load_lora_adapter").update()
    with pytest.raises(EngineSilent):
        await run(redis, update)
    assert update.unfinished


def test_no_rank_at_all_is_no_proof() -> None:
    with pytest.raises(UpdateFailed, match="showed nothing"):
        prove_adapter(SENT, [])


def test_every_announcement_has_a_name_of_its_own() -> None:
    assert adapter_name(ANNOUNCED) == "7-beef"
