"""The JSON object of /v1/status: what runs, and where the engines are with the newest weights."""

from typing import Literal

from shared.rest_answers import Answer
from shared.weights_answers import UpdateStatus


class RouterStatus(Answer):
    reachable: bool
    workers: int
    """Engines that are registered."""


class RedisStatus(Answer):
    version: str
    used_memory: int
    """Bytes."""


class MemoryOfEngine(Answer):
    engine: str
    state: str
    """In the trainer's turn: asked (it has not answered), releasing, released, or none: it has no process, and launches
    none. In the engines' turn: free to use the memory; what it does is in `update`."""
    since: float | None = None
    reason: str = ""
    """none: why its process was ended, if it would not give its memory away."""


class MemoryStatus(Answer):
    """Whose the memory of the device is that trainer and engines have in turn."""

    holder: Literal["trainer", "engines"]
    since: float
    until: float | None
    """trainer: by when engines have to have given it away."""
    trainer_is_up: bool
    """Whether a trainer is ready and gave a sign of life lately; the next one after a kill asks for the memory anew."""
    engines: list[MemoryOfEngine]


class Status(Answer):
    active_run: str | None
    services: list[str]
    """`role/name` of every service that is ready for the active run."""
    router: RouterStatus
    redis: RedisStatus
    update: UpdateStatus | None = None
    """Of the active run; null where it has announced no version yet."""
    memory: MemoryStatus | None = None
    """Of the active run; null where trainer and engines take no turns with it."""
