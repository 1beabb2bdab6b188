"""SGLang names the weight versions of an answer at its end -> at every piece of a stream, so that a cut one has them.

SGLang's own registry of hooks applies this in the scheduler's process; where it does not fit the installed release,
pieces stay without spans, and the worker stores only those whose version is beyond doubt.
"""

import contextlib
from collections.abc import Callable
from typing import Any

TARGET = "sglang.srt.managers.scheduler_components.output_streamer._GenerationStreamAccumulator.accept"


def name_streamed_versions() -> None:
    """Register the hook; SGLang applies it before it serves."""
    with contextlib.suppress(ImportError):
        from sglang.srt.plugins.hook_registry import HookRegistry, HookType  # noqa: PLC0415
        from sglang.srt.utils.weight_versions import compute_weight_version_spans  # noqa: PLC0415

        def accept(original: Callable[..., None], pieces: Any, *, req: Any) -> None:
            sent = len(pieces.weight_versions)
            original(pieces, req=req)
            if len(pieces.weight_versions) > sent and pieces.weight_versions[-1] is None:
                pieces.weight_versions[-1] = compute_weight_version_spans(
                    req.weight_version_events,
                    current_version=pieces.current_weight_version,
                    num_output_tokens=len(req.output_ids_through_stop),
                )

        HookRegistry.register(TARGET, accept, HookType.AROUND)
