"""What the gateway refuses, and with which HTTP status."""

from collections.abc import Sequence
from typing import Any

from shared.errors import SluiceError


class RowError(SluiceError):
    """A row of an upload that cannot be stored."""


class Refusal(SluiceError):
    """A request that is not carried out; the message says what to send instead."""

    def __init__(self, status: int, message: str, details: Sequence[Any] = ()) -> None:
        super().__init__(message)
        self.status = status
        self.details = list(details)
