"""Work that still has to be done when a service ends, whoever cancels it meanwhile."""

import asyncio
import contextlib
import time
from collections.abc import Coroutine
from typing import Any


async def say(words: Coroutine[Any, Any, None], seconds: float) -> None:
    """Do the work within some seconds, best effort: a service that ends repeats its cancellation."""
    saying = asyncio.ensure_future(words)
    until = time.monotonic() + seconds
    while not saying.done() and (left := until - time.monotonic()) > 0:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait({saying}, timeout=left)
    saying.cancel()
    if saying.done() and not saying.cancelled():
        saying.exception()  # marks it as seen
