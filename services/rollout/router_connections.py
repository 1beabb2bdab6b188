"""Requests to the router -> answers, each request on a free connection of its own.

httpx looks at every connection of a client, several times, for every request; with hundreds of requests in flight that
costs more than the requests. So each connection is a client, and a stack holds those that are free.
"""

import contextlib
from collections.abc import AsyncGenerator

import httpx

CONNECT_DEADLINE_S = 5.0
JSON = {"content-type": "application/json"}


class RouterConnections:
    """As many connections as there ever were requests at once; whoever sends requests bounds their number."""

    def __init__(self, url: str, deadline_s: float) -> None:
        """`deadline_s` bounds the wait for one answer."""
        self._url = url
        self._timeout = httpx.Timeout(deadline_s, connect=CONNECT_DEADLINE_S)
        self._tls = httpx.create_ssl_context(trust_env=False)
        self._free: list[httpx.AsyncClient] = []

    async def __aenter__(self) -> "RouterConnections":
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close the free connections; one that is in use closes when its request is cancelled."""
        while self._free:
            await self._free.pop().aclose()

    async def post(self, path: str, content: bytes) -> httpx.Response:
        """Send JSON; httpx.TransportError if there is no answer."""
        client = self._free.pop() if self._free else self._connect()
        try:
            answer = await client.post(path, content=content, headers=JSON)
        except BaseException:
            await client.aclose()
            raise
        self._free.append(client)
        return answer

    @contextlib.asynccontextmanager
    async def stream(self, path: str, content: bytes) -> AsyncGenerator[httpx.Response]:
        """Send JSON; the answer is read as it comes. httpx.TransportError if there is none, or it breaks off."""
        client = self._free.pop() if self._free else self._connect()
        try:
            async with client.stream("POST", path, content=content, headers=JSON) as answer:
                yield answer
        except BaseException:
            await client.aclose()
            raise
        self._free.append(client)

    def _connect(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=self._url, timeout=self._timeout, verify=self._tls, trust_env=False)
