"""Requests to an engine of adapters -> each answered by the version that is newest when it comes, and by that alone.

An adapter of every version stands beside the others in the engine, so that nothing waits when another one comes:
requests in flight end with their own, whose name every piece of their answers has. One that nobody uses is let go of.
SGLang applies these hooks in the process that takes requests.
"""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

MANAGER = "sglang.srt.managers.tokenizer_manager.TokenizerManager"


def serve_adapters() -> None:
    """Register the hooks; they do nothing in an engine of whole weights."""
    with contextlib.suppress(ImportError):
        from sglang.srt.plugins.hook_registry import HookRegistry, HookType  # noqa: PLC0415

        shelf = AdapterShelf(_unload)
        HookRegistry.register(f"{MANAGER}.generate_request", shelf.generate, HookType.AROUND)
        HookRegistry.register(f"{MANAGER}.load_lora_adapter", shelf.load, HookType.AROUND)


async def _unload(manager: Any, name: str) -> None:
    from sglang.srt.managers.io_struct import UnloadLoRAAdapterReqInput  # noqa: PLC0415

    await manager.unload_lora_adapter(UnloadLoRAAdapterReqInput(lora_name=name))


class AdapterShelf:
    """The adapters that an engine holds, and how many requests use each of them."""

    def __init__(self, unload: Callable[[Any, str], Awaitable[None]]) -> None:
        self._unload, self._used, self._loaded = unload, Counter[str](), ""
        self._leaving: asyncio.Task[None] | None = None
        self._look_again = False

    async def generate(
        self, original: Callable[..., AsyncGenerator[Any]], manager: Any, request: Any, *more: Any
    ) -> AsyncGenerator[Any]:
        """Answer with the newest adapter; a request that names one itself, or comes before the first, is left alone."""
        name = named_adapter(manager.config_value("weight_version"))
        if not name or request.lora_path:
            async for answer in original(manager, request, *more):
                yield answer
            return
        request.lora_path = name
        self._used[name] += 1  # before anything is awaited: from here on it is not let go of
        try:
            async with contextlib.aclosing(original(manager, request, *more)) as answers:
                async for answer in answers:
                    for one in answer if isinstance(answer, list) else [answer]:
                        name_version(one["meta_info"], name)
                    yield answer
        finally:
            self._used[name] -= 1
            if name != self._loaded and not self._used[name]:
                self._tidy(manager)

    async def load(self, original: Callable[..., Awaitable[Any]], manager: Any, wanted: Any, *more: Any) -> Any:
        """Load one, and let go of those that are neither the newest nor in use; of others when their requests end."""
        result = await original(manager, wanted, *more)
        if result.success:
            self._loaded = wanted.lora_name
            self._tidy(manager)
        return result

    def _tidy(self, manager: Any) -> None:
        """Let go of what nobody uses any more; once more, if that is under way."""
        self._look_again = True
        if self._leaving is None or self._leaving.done():
            self._leaving = asyncio.create_task(self._let_go_of_all(manager))

    async def _let_go_of_all(self, manager: Any) -> None:
        while self._look_again:
            self._look_again = False
            await self._let_go(manager)

    async def _let_go(self, manager: Any) -> None:
        registry = manager.lora_registry
        for name, adapter in registry.get_all_adapters().items():
            count = registry._counters[adapter.lora_id].value()
            is_kept = name in (self._loaded, manager.config_value("weight_version")) or not named_adapter(name)
            if is_kept or self._used[name] or count > 0:
                continue
            if count < 0:  # releases before 0.5.20 count a request for several samples once too often, and would wait
                registry._counters[adapter.lora_id] = type(registry._counters[adapter.lora_id])()
            await self._unload(manager, name)
            manager.lora_ref_cache.pop(name, None)
            del self._used[name]


def named_adapter(weight_version: Any) -> str:
    """The adapter that weights of this name are, `VERSION-MARK`; empty if they are whole ones, or nobody's."""
    version, _, mark = str(weight_version).partition("-")
    return str(weight_version) if version.isdecimal() and mark else ""


def name_version(meta: dict[str, Any], adapter: str) -> None:
    """Of the whole answer so far, which the engine would count by what it was told of last."""
    version, tokens = adapter.partition("-")[0], int(meta.get("completion_tokens") or 0)
    meta["weight_version"] = version
    meta["weight_versions"] = [{"version": version, "start": 0, "end": tokens}]
