"""The bytes of an event stream -> its lines, each ended by a line feed and by no other separator."""

from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator


class EventLines:
    """Lines without their ends; JSON leaves U+0085, U+2028 and the like unescaped in texts, where they end no line."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, chunk: bytes) -> list[str]:
        """The lines that a chunk completes."""
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        return [_text(line) for line in lines]

    def end(self) -> list[str]:
        """What came after the last line feed, if anything."""
        return [_text(self._rest)] if self._rest else []


def event_lines(chunks: Iterable[bytes]) -> Iterator[str]:
    lines = EventLines()
    for chunk in chunks:
        yield from lines.feed(chunk)
    yield from lines.end()


async def event_lines_async(chunks: AsyncIterable[bytes]) -> AsyncIterator[str]:
    lines = EventLines()
    async for chunk in chunks:
        for line in lines.feed(chunk):
            yield line
    for line in lines.end():
        yield line


def _text(line: bytes) -> str:
    return line.decode(errors="replace").removesuffix("\r")
