"""Requests get the newest adapter and keep it; adapters that nobody uses leave; nothing happens to whole weights."""

import asyncio
from collections.abc import AsyncGenerator
from types import SimpleNamespace
from typing import Any

import pytest

from services.rollout.serve_adapters import AdapterShelf, named_adapter
from tests.conftest import until


class Counter:
    """As SGLang counts the requests that use an adapter."""

    def __init__(self) -> None:
        self.count = 0

    def value(self) -> int:
        return self.count


class Manager:
    """The calls of SGLang's tokenizer manager that are hooked, with the bookkeeping beside them."""

    def __init__(self) -> None:
        self.version = "default"
        self.lora_registry = SimpleNamespace(_counters={}, get_all_adapters=lambda: dict(self.adapters))
        self.adapters: dict[str, Any] = {}
        self.lora_ref_cache: dict[str, Any] = {}
        self.may_end = asyncio.Event()

    def config_value(self, _: str) -> str:
        return self.version

    async def load(self, _: Any, wanted: Any) -> Any:
        self.adapters[wanted.lora_name] = self.lora_ref_cache[wanted.lora_name] = SimpleNamespace(
            lora_id=wanted.lora_name
        )
        self.lora_registry._counters[wanted.lora_name] = Counter()
        return SimpleNamespace(success=True)

    async def unload(self, name: str) -> None:
        assert self.lora_registry._counters[name].count == 0
        del self.adapters[name]

    async def generate(self, _: Any, request: Any) -> AsyncGenerator[Any]:
        for tokens in (1, 2):
            meta = {"completion_tokens": tokens, "weight_version": self.version, "used": request.lora_path}
            yield [{"meta_info": meta}] if request.samples > 1 else {"meta_info": meta}
            await self.may_end.wait()


@pytest.fixture
def manager() -> Manager:
    return Manager()


async def put(shelf: AdapterShelf, manager: Manager, *names: str) -> None:
    for name in names:
        await shelf.load(lambda m, wanted: m.load(m, wanted), manager, SimpleNamespace(lora_name=name))
        assert shelf._leaving is not None
        await shelf._leaving
        manager.version = name


def request(samples: int = 1) -> Any:
    return SimpleNamespace(lora_path=None, samples=samples)


def asked(shelf: AdapterShelf, manager: Manager, samples: int = 1) -> AsyncGenerator[Any]:
    return shelf.generate(lambda m, r: m.generate(m, r), manager, request(samples))


@pytest.mark.parametrize("samples", [1, 2])
async def test_every_piece_of_an_answer_names_the_version_that_it_began_with(manager: Manager, samples: int) -> None:
    shelf = AdapterShelf(Manager.unload)
    await put(shelf, manager, "3-aa")
    answers = asked(shelf, manager, samples)
    first = await anext(answers)
    await put(shelf, manager, "4-bb")
    manager.may_end.set()
    second = await anext(answers)
    for piece, tokens in ((first, 1), (second, 2)):
        meta = (piece[0] if samples > 1 else piece)["meta_info"]
        assert (meta["used"], meta["weight_version"]) == ("3-aa", "3")
        assert meta["weight_versions"] == [{"version": "3", "start": 0, "end": tokens}]
    assert (await anext(asked(shelf, manager)))["meta_info"]["used"] == "4-bb"


async def test_an_adapter_stays_while_a_request_uses_it_and_leaves_with_its_end(manager: Manager) -> None:
    shelf = AdapterShelf(Manager.unload)
    await put(shelf, manager, "0-aa")
    answers = asked(shelf, manager)
    await anext(answers)
    await put(shelf, manager, "1-bb", "2-cc", "3-dd")
    assert manager.adapters.keys() == {"0-aa", "2-cc", "3-dd"}
    manager.lora_registry._counters["0-aa"].count = -1  # as older releases of SGLang leave it behind
    await answers.aclose()
    assert shelf._leaving is not None
    await shelf._leaving
    assert manager.adapters.keys() == manager.lora_ref_cache.keys() == {"3-dd"}
    await put(shelf, manager, "4-ee")
    assert manager.adapters.keys() == {"3-dd", "4-ee"}


async def test_an_adapter_that_is_not_used_any_more_while_others_leave_is_not_forgotten(manager: Manager) -> None:
    may_go, asked_for = asyncio.Event(), list[str]()

    async def slowly(_: Manager, name: str) -> None:
        asked_for.append(name)
        await may_go.wait()
        await manager.unload(name)

    shelf = AdapterShelf(slowly)
    await put(shelf, manager, "0-aa")
    answers = asked(shelf, manager)
    await anext(answers)
    await put(shelf, manager, "1-bb")
    loading = asyncio.create_task(put(shelf, manager, "2-cc", "3-dd"))
    await until(lambda: _is(asked_for, ["1-bb"]))
    await answers.aclose()
    may_go.set()
    await loading
    assert manager.adapters.keys() == {"2-cc", "3-dd"}


async def _is(found: list[str], wanted: list[str]) -> bool:
    return found == wanted


@pytest.mark.parametrize("version", ["default", "7", "None"])
async def test_whole_weights_are_left_alone(manager: Manager, version: str) -> None:
    manager.version = version
    (meta,) = (await anext(asked(AdapterShelf(Manager.unload), manager))).values()
    assert (meta["used"], meta["weight_version"]) == (None, version)
    assert "weight_versions" not in meta
    assert named_adapter(version) == ""


async def test_a_request_that_names_an_adapter_gets_that(manager: Manager) -> None:
    shelf, wanted = AdapterShelf(Manager.unload), request()
    await put(shelf, manager, "0-aa")
    wanted.lora_path = "mine"
    answer = await anext(shelf.generate(lambda m, r: m.generate(m, r), manager, wanted))
    assert answer["meta_info"]["used"] == "mine"
