"""SGLang hashes the parameters of its model -> those of an adapter as well, which it keeps beside the model.

Asked for the checksum of `adapter:NAME`, the checker is shown the tensors of that adapter in the place of the model.
SGLang applies these hooks in the scheduler's process.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

CHECKER = "sglang.srt.utils.weight_checker.WeightChecker.handle"
LOADER = "sglang.srt.lora.lora_manager.LoRAManager.load_lora_adapter"
ADAPTER = "adapter:"


def show_adapters() -> None:
    """Register the hooks; they do nothing in an engine of whole weights."""
    with contextlib.suppress(ImportError):
        from sglang.srt.plugins.hook_registry import HookRegistry, HookType  # noqa: PLC0415

        shown = ShownAdapters()
        HookRegistry.register(LOADER, shown.load, HookType.AROUND)
        HookRegistry.register(CHECKER, shown.check, HookType.AROUND)


class AdapterTensors:
    """An adapter, as far as the checker looks at a model."""

    def __init__(self, adapter: Any) -> None:
        self._adapter = adapter

    def named_parameters(self) -> Iterator[tuple[str, Any]]:
        for layer in self._adapter.layers:
            yield from layer.weights.items()

    def named_buffers(self) -> Iterator[tuple[str, Any]]:
        return iter(())

    def named_modules(self) -> Iterator[tuple[str, Any]]:
        return iter(())

    def modules(self) -> Iterator[Any]:
        return iter(())


class ShownAdapters:
    """Who keeps the adapters of this process."""

    def __init__(self) -> None:
        self._keeper: Any = None

    def load(self, original: Callable[..., Any], keeper: Any, adapter: Any) -> Any:
        """See who loads them."""
        self._keeper = keeper
        return original(keeper, adapter)

    def check(self, original: Callable[..., Any], checker: Any, action: str, *more: Any, **others: Any) -> Any:
        """Hash an adapter, or what SGLang hashes; an exception, as by SGLang, if there is no such adapter."""
        if not action.startswith(ADAPTER):
            return original(checker, action, *more, **others)
        found, shown = self._find(action.removeprefix(ADAPTER)), checker._get_model
        checker._get_model = lambda: AdapterTensors(found)
        try:
            return original(checker, "checksum", *more, **others)
        finally:
            checker._get_model = shown

    def _find(self, name: str) -> Any:
        keeper = self._keeper
        for ref in keeper.lora_refs.values() if keeper else ():
            if ref.lora_name == name:
                return keeper.loras[ref.lora_id]
        raise KeyError(f"no adapter {name} is loaded")
