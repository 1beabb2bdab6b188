"""A request body -> a file on disk, chunk by chunk, with its size and SHA-256."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

WRITE_BYTES = 2**20
"""Chunks of the network are gathered to this size before a thread writes them."""


async def receive_upload(body: AsyncIterator[bytes], file: Path) -> tuple[int, str]:
    """Write the body to `file`; returns (bytes, SHA-256 in hex)."""
    digest, size, gathered = hashlib.sha256(), 0, bytearray()
    with await asyncio.to_thread(file.open, "wb") as out:

        def write(block: bytes) -> None:
            digest.update(block)
            out.write(block)

        async for chunk in body:
            gathered += chunk
            if len(gathered) >= WRITE_BYTES:
                await asyncio.to_thread(write, bytes(gathered))
                size += len(gathered)
                gathered.clear()
        await asyncio.to_thread(write, bytes(gathered))
    return size + len(gathered), digest.hexdigest()
