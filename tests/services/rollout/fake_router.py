"""A router that answers at once, as a real HTTP server: each test says what it answers."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

Respond = Callable[[dict[str, Any]], Awaitable[tuple[int, Any]]]


def item(token_ids, finish="length", versions=((3, None),), logprob=-0.5) -> dict[str, Any]:
    """One continuation as SGLang writes it; `versions` are (version, tokens), None for all that are left."""
    spans, start = [], 0
    for version, count in versions:
        end = len(token_ids) if count is None else start + count
        spans.append({"version": str(version), "start": start, "end": end})
        start = end
    meta = {
        "finish_reason": {"type": finish},
        "weight_version": spans[-1]["version"],
        "weight_versions": spans,
        "output_token_logprobs": [[logprob, token_id, None] for token_id in token_ids],
    }
    return {"text": "", "output_ids": list(token_ids), "meta_info": meta}


def piece(token_ids, total, finish="", version=3, spans=True, index=None) -> dict[str, Any]:
    """An event of a streamed answer: some tokens, and how many there are by now; logprobs are -token / 1000."""
    meta = {
        "finish_reason": {"type": finish} if finish else None,
        "completion_tokens": total,
        "weight_version": str(version),
        "output_token_logprobs": [[-token_id / 1000, token_id, None] for token_id in token_ids],
    }
    if spans:
        meta["weight_versions"] = [{"version": str(version), "start": 0, "end": total}]
    event = {"text": "", "output_ids": list(token_ids), "meta_info": meta}
    return event if index is None else {**event, "index": index}


class Cut(Exception):
    """Raised by a stream of events that breaks off."""


async def hello(body: dict[str, Any]) -> tuple[int, Any]:
    """Every attempt says `hi!` and ends."""
    return 200, [item([*b"hi!", 258], "stop") for _ in range(body["sampling_params"]["n"])]


@dataclass
class FakeRouter:
    respond: Respond = hello
    requests: list[dict[str, Any]] = field(default_factory=list)
    url: str = ""
    now: int = 0
    most: int = 0
    """Most requests at once."""

    @contextlib.asynccontextmanager
    async def serving(self, port: int = 0) -> AsyncIterator["FakeRouter"]:
        server = await asyncio.start_server(self._talk, "127.0.0.1", port)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield self
        finally:
            server.close()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
                await self._answer(json.loads(await reader.readexactly(length)), writer)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass  # who asked is gone, or the test is over
        finally:
            writer.close()

    async def _answer(self, body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        self.requests.append(body)
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            status, answer = await self.respond(body)
        finally:
            self.now -= 1
        if hasattr(answer, "__aiter__"):
            return await self._stream(answer, writer)
        content = json.dumps(answer).encode()
        head = f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
        writer.write(head.encode() + content)
        await writer.drain()

    async def _stream(self, events: AsyncIterator[dict[str, Any]], writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 X\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n")
        with contextlib.suppress(Cut):
            async for event in events:
                writer.write(f"data: {json.dumps(event)}\n\n".encode())
                await writer.drain()
            writer.write(b"data: [DONE]\n\n")
        writer.close()
