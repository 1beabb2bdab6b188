"""A request with token ids that the model has no embedding for -> an answer 400.

SGLang would look them up, and end with every request in flight: on a CPU by an IndexError, on a GPU by an assertion
in the kernel. The worker never asks so; others may, through the gateway.
"""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

TARGET = "sglang.srt.managers.tokenizer_manager.TokenizerManager._validate_one_request"


def refuse_unknown_tokens() -> None:
    """Register the hook; SGLang applies it before it serves. A release without such hooks does without the check."""
    with contextlib.suppress(ImportError):
        from sglang.srt.plugins.hook_registry import HookRegistry, HookType  # noqa: PLC0415

        def validate(
            original: Callable[..., None], manager: Any, request: Any, input_ids: Sequence[int] | None, **more: Any
        ) -> None:
            vocabulary = int(manager.model_config.vocab_size)
            if input_ids and not 0 <= min(input_ids) <= max(input_ids) < vocabulary:
                raise ValueError(f"a token id is not of this model; write ids from 0 to {vocabulary - 1}")
            original(manager, request, input_ids, **more)

        HookRegistry.register(TARGET, validate, HookType.AROUND)
