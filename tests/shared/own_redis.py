"""A Redis server of one test, which can be killed and started again on what it had written."""

import subprocess
from pathlib import Path

from redis.asyncio import Redis

from deploy import embedded_redis
from shared.redis_connection import connect_checked


class OwnRedis:
    """Starts on its port; `kill` is SIGKILL, and `start` goes on with the same append-only file."""

    def __init__(self, home: Path, port: int, fsync: str = "everysec") -> None:
        self._home, self._port, self._fsync = home, port, fsync
        self.url = embedded_redis.url(home, port)
        self._server: subprocess.Popen[bytes] | None = None

    async def start(self) -> Redis:
        """A new client on the server that was started."""
        self._launch()
        return await connect_checked(self.url, 10)

    def _launch(self) -> None:
        command = embedded_redis.command(self._home, self._port, self._fsync)
        self._server = subprocess.Popen(command, stdout=subprocess.DEVNULL)

    def kill(self) -> None:
        if self._server is not None:
            self._server.kill()
            self._server.wait(10)
            self._server = None
