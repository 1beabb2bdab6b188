"""A service at an address -> one that has answered a health check, or a run that is refused."""

import asyncio
import time
from dataclasses import dataclass

from services.reward.remote.breaker import OnChange
from services.reward.remote.client import ServiceClient
from services.reward.remote.failures import Rejected, Unavailable
from services.reward.tell import Tell
from shared.errors import RunRejected

START_PATIENCE_S = 10.0
"""A service that starts together with the run gets this long, or the deadline of a call if that is shorter."""
POLL_S = 0.5


@dataclass(frozen=True, slots=True)
class Words:
    """How users know a service."""

    name: str
    """Such as `the reward service`."""
    setting: str
    """That has its address."""
    event: str
    """What the names of its events begin with."""


async def await_health(client: ServiceClient, words: Words, may_reject: bool, tell: Tell) -> None:
    """Return once the service is healthy.

    Raises:
        RunRejected: it is not, unless `may_reject` is False: then the run is under way and an outage only lets it wait.
    """
    patience_s = min(client.deadline_s, START_PATIENCE_S)
    until, told = time.monotonic() + patience_s, False
    while True:
        try:
            await client.check_health(patience_s)
            return
        except (Unavailable, Rejected) as error:
            if time.monotonic() + POLL_S > until and may_reject:
                raise RunRejected(
                    f"{words.name} at {client.name} fails its health check, GET {client.name.rstrip('/')}/health "
                    f"({error}); start it or correct {words.setting}"
                ) from error
            if not may_reject and not told:
                await tell(f"{words.event}_outage", {"url": client.name, "error": str(error)})
                told = True
        await asyncio.sleep(POLL_S)


def telling(client: ServiceClient, words: Words, tell: Tell) -> OnChange:
    """What a breaker calls when the service goes out, and when it is back."""

    async def on_change(available: bool, reason: str) -> None:
        detail = {"url": client.name} if available else {"url": client.name, "error": reason}
        await tell(f"{words.event}_recovered" if available else f"{words.event}_outage", detail)

    return on_change
