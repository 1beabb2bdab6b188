"""The names a user imports: what plugins receive and return, and the client of the REST API."""

import importlib
from typing import TYPE_CHECKING, Any

from shared.errors import SluiceError
from shared.messages import GroupReady, Prompt, Rollout

if TYPE_CHECKING:
    from services.rollout.session import Session
    from sluice.client import Client

__all__ = ["Client", "GroupReady", "Prompt", "Rollout", "Session", "SluiceError"]

LAZY = {"Client": "sluice.client", "Session": "services.rollout.session"}
"""Loaded on first use: a reward plugin needs neither an HTTP client nor the rollout service."""


def __getattr__(name: str) -> Any:
    if name not in LAZY:
        raise AttributeError(f"module 'sluice' has no attribute {name!r}")
    return getattr(importlib.import_module(LAZY[name]), name)
