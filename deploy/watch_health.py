"""A health address, asked again and again -> the moment when the service is healthy, or counts as hung."""

import asyncio

from deploy.probe import ask, is_healthy

POLL_S = 0.2
PROBE_EVERY_S = 5.0
SILENT_PROBES = 6
"""Probes in a row without any answer after which a service counts as hung; a pause of some seconds is borne."""


async def until_healthy(address: str, deadline_s: float) -> bool:
    """Wait for the first healthy answer; False if there is none within so many seconds."""
    clock = asyncio.get_running_loop().time
    until = clock() + deadline_s
    while not await is_healthy(address):
        if clock() > until:
            return False
        await asyncio.sleep(POLL_S)
    return True


async def until_hung(address: str) -> str:
    """Wait until SILENT_PROBES probes in a row got no answer; the reason to tell."""
    clock, silent = asyncio.get_running_loop().time, 0
    while silent < SILENT_PROBES:
        asked = clock()
        silent = silent + 1 if await ask(address) == "silent" else 0
        await asyncio.sleep(max(0.0, PROBE_EVERY_S - (clock() - asked)))
    return f"hung: no healthy answer for {SILENT_PROBES * PROBE_EVERY_S:g} s"
