"""Lines of an event stream, whatever its text holds and wherever its bytes are cut."""

import json
from collections.abc import AsyncIterator

import pytest

from services.rollout.event_lines import event_lines

TEXTS = ["plain", "\x0b\x0c\x1c\x1d\x1e", "next\x85line", "two\u2028 and \u2029", "é🙂"]


async def chunks(data: bytes, size: int) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("size", [1, 3, 1000])
async def test_only_a_line_feed_ends_a_line(size: int, end: str) -> None:
    lines = [f"data: {json.dumps({'text': text}, ensure_ascii=False)}" for text in TEXTS]
    data = f"{end}{end}".join(lines).encode()
    found = [line async for line in event_lines(chunks(data, size)) if line]
    assert [json.loads(line.removeprefix("data: "))["text"] for line in found] == TEXTS
