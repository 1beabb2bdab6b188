"""The JSON object of /v1/status: what runs, and where the engines are with the newest weights."""

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


class Status(Answer):
    active_run: str | None
    services: list[str]
    """`role/name` of every service that is ready for the active run."""
    router: RouterStatus
    redis: RedisStatus
    update: UpdateStatus | None = None
    """Of the active run; null where it has announced no version yet."""
