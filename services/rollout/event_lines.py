"""The bytes of an event stream -> its lines, each ended by a line feed and by no other separator."""

from collections.abc import AsyncIterable, AsyncIterator


async def event_lines(chunks: AsyncIterable[bytes]) -> AsyncIterator[str]:
    """Lines without their ends; JSON leaves U+0085, U+2028 and the like unescaped in texts, where they end no line."""
    rest = b""
    async for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line.decode(errors="replace").removesuffix("\r")
    if rest:
        yield rest.decode(errors="replace")
