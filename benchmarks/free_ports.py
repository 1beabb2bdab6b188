"""A machine with other programs -> ports for servers that a test or a benchmark starts, also much later."""

import itertools
import random
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

FIRST, LAST = 12000, 32000
"""Below those that Linux gives to outgoing connections, any of which could take a port before its server starts."""
ROW = 8
"""Ports that one call gives: further engines and sidecars listen beside the first."""
SECTIONS = {
    "redis": ("port",),
    "gateway": ("port",),
    "router": ("port", "metrics_port"),
    "engine": ("port",),
    "health": ("trainer_port", "rollout_port", "reward_port", "engine_port"),
}


def _rows() -> Iterator[int]:
    rows = range(FIRST, LAST, ROW)
    start = random.SystemRandom().randrange(len(rows))  # processes that run side by side begin far from each other
    return itertools.cycle(itertools.chain(rows[start:], rows[:start]))


_ROWS = _rows()


def free_port() -> int:
    """The first of ROW ports on which nobody listens; no other call of this process gives them."""
    row = next(filter(_is_free, itertools.islice(_ROWS, (LAST - FIRST) // ROW)), None)
    assert row is not None, f"no {ROW} ports in a row are free from {FIRST} to {LAST}; stop what listens there"
    return row


def free_ports() -> dict[str, dict[str, Any]]:
    """Settings of a deployment by which no two services ask for one port, nor for one that is taken."""
    return {section: {name: free_port() for name in names} for section, names in SECTIONS.items()}


def _is_free(first: int) -> bool:
    with ExitStack() as stack:
        try:
            for port in range(first, first + ROW):
                stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
