"""Waiting for the ledger's disk: on a real server, and on answers that servers give in worse moments."""

from typing import Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from services.trainer.ledger_on_disk import LedgerOnDisk
from shared.topology import Keys
from tests.services.trainer.test_checkpoint import NotedLog

KEYS = Keys("r1")


def on_disk(redis: Any, deadline_s: float = 0.1) -> tuple[LedgerOnDisk, NotedLog]:
    log = NotedLog()
    return LedgerOnDisk(redis, KEYS, log, deadline_s), log


async def test_what_a_real_server_answered_is_soon_on_its_disk(redis: Redis) -> None:
    await redis.set("written", "1")
    waiting, log = on_disk(redis, 10)
    assert await waiting.wait(3)
    assert log.lines == []


class Server:
    """Answers WAITAOF, or does not know it and answers INFO."""

    def __init__(self, waitaof: Any, info: dict[str, Any] | None = None) -> None:
        self._waitaof, self._info = waitaof, info or {}
        self.written: list[str] = []

    def client(self) -> "Server":
        return self

    async def __aenter__(self) -> "Server":
        return self

    async def __aexit__(self, *_: object) -> None:
        return

    async def hset(self, key: str, field: str, value: str) -> None:
        self.written.append(value)

    async def execute_command(self, *command: Any) -> Any:
        assert self.written, "WAITAOF waits for what its own connection wrote"
        if isinstance(self._waitaof, Exception):
            raise self._waitaof
        return self._waitaof

    async def info(self, section: str) -> dict[str, Any]:
        return self._info


UNKNOWN = ResponseError("unknown command 'WAITAOF'")
BUSY = {"aof_enabled": 1, "aof_buffer_length": 0, "aof_pending_bio_fsync": 1}


@pytest.mark.parametrize(
    ("server", "durable", "event"),
    [
        (Server([1, 0]), True, None),
        (Server([0, 0]), False, "ledger_not_on_disk"),
        (Server(ResponseError("WAITAOF cannot be used when appendonly is disabled")), False, "ledger_not_on_disk"),
        (Server(UNKNOWN, {**BUSY, "aof_pending_bio_fsync": 0}), True, None),
        (Server(UNKNOWN, BUSY), False, "ledger_not_on_disk"),
        (Server(UNKNOWN, {**BUSY, "aof_buffer_length": 10}), False, "ledger_not_on_disk"),
        (Server(UNKNOWN, {"aof_enabled": 0}), True, "ledger_not_durable"),
    ],
)
async def test_each_answer_is_understood(server: Server, durable: bool, event: str | None) -> None:
    waiting, log = on_disk(server)
    assert await waiting.wait(3) is durable
    assert [name for name, _ in log.lines] == ([event] if event else [])
