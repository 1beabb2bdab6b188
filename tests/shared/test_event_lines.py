"""Lines of an event stream, whatever its text holds and wherever its bytes are cut."""

import json
from collections.abc import AsyncIterator

import pytest

from shared.event_lines import event_lines, event_lines_async

TEXTS = ["plain", "\x0b\x0c\x1c\x1d\x1e", "next\x85line", "two\u2028 and \u2029", "é🙂"]


def cut(data: bytes, size: int) -> list[bytes]:
    return [data[start : start + size] for start in range(0, len(data), size)]


async def arriving(chunks: list[bytes]) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("size", [1, 3, 1000])
async def test_only_a_line_feed_ends_a_line(size: int, end: str) -> None:
    lines = [f"data: {json.dumps({'text': text}, ensure_ascii=False)}" for text in TEXTS]
    chunks = cut(f"{end}{end}".join(lines).encode(), size)
    found = [line for line in event_lines(chunks) if line]
    assert [json.loads(line.removeprefix("data: "))["text"] for line in found] == TEXTS
    assert [line async for line in event_lines_async(arriving(chunks)) if line] == found
