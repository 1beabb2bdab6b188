"""GET /healthz on a port of its own, for services without a REST API: 200 while the event loop turns."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator

from shared.errors import SluiceError

READ_DEADLINE_S = 5.0


@contextlib.asynccontextmanager
async def serve_health(host: str, port: int) -> AsyncGenerator[None]:
    """Answer health checks while the block runs; SluiceError if the port is in use."""
    try:
        server = await asyncio.start_server(_answer, host, port)
    except OSError as error:
        raise SluiceError(
            f"port {port} on {host} is in use ({error.strerror}); stop what listens there or set another health port"
        ) from error
    async with server:
        yield


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        request = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), READ_DEADLINE_S)
        found = request.split(b" ", 2)[1:2] == [b"/healthz"]
        status, body = (b"200 OK", b'{"status":"ok"}') if found else (b"404 Not Found", b"{}")
        head = b"HTTP/1.1 %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
        writer.write(head % (status, len(body)) + body)
        await writer.drain()
    except (TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError):
        pass  # a caller that does not speak HTTP, or left; nobody waits for an answer
    finally:
        writer.close()
