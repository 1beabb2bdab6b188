"""The address of an engine that somebody else keeps, and where a run's versions lie -> whether it can read them."""

import asyncio
import socket
from urllib.parse import urlsplit

from services.rollout.check_attached import EngineUnfit
from shared.run_settings import WeightSettings
from shared.weight_store import WeightStore


async def check_reach(url: str, weights: WeightSettings) -> None:
    """EngineUnfit where an engine of another host would be given memory, or a path that nobody chose for both hosts."""
    if weights.transport == "broadcast" or _is_chosen(weights) or await asyncio.to_thread(is_on_this_host, url):
        return
    if weights.transport == "ipc":
        raise EngineUnfit(
            f"the engine at {url} is on another host than its sidecar, and cannot read memory of this one; set"
            ' weights.transport = "broadcast"'
        )
    also = ", or weights.folder to one, which disk reads in place" if weights.transport == "disk" else ""
    raise EngineUnfit(
        f"the engine at {url} is on another host than its sidecar, and cannot read a copy that is made here; set"
        f' weights.local_folder to a folder that both see by the same path{also}, or weights.transport = "broadcast"'
    )


def is_on_this_host(url: str) -> bool:
    """Whether the host of a URL has an address of this machine; one that is not found is elsewhere. Blocks."""
    try:
        found = socket.getaddrinfo(urlsplit(url).hostname, None, type=socket.SOCK_DGRAM)
    except OSError:
        return False
    return any(_is_own(family, address[0]) for family, _, _, _, address in found)


def _is_chosen(weights: WeightSettings) -> bool:
    if weights.local_folder:
        return True
    return weights.transport == "disk" and bool(weights.folder) and WeightStore(weights.folder).is_local


def _is_own(family: int, address: str | int) -> bool:
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
        return True
