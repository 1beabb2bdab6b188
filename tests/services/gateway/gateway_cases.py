"""Small datasets, run settings and streams that the gateway's tests share."""

import json
from collections.abc import AsyncIterator
from typing import Any

from redis.asyncio import Redis

from services.gateway.check_row import RowKeys
from services.gateway.dataset_store import DatasetStore, Format
from shared.logs import Log
from shared.messages import Codec, Prompt
from shared.rest_answers import Dataset
from shared.run_settings import RunSettings
from shared.runs import announce
from shared.settings import merge
from shared.topology import PROMPTS, Keys

LOG = Log("gateway")
ALL_ROLES = ("trainer/trainer", "engine/e0", "rollout/w0", "reward/r0")


def lines(*rows: Any) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def sums(count: int, first: int = 0) -> bytes:
    return lines(*({"prompt": f"{i}+1=", "label": str(i + 1)} for i in range(first, first + count)))


def pairs(count: int) -> bytes:
    return lines(*({"prompt": f"{i}+1=", "chosen": str(i + 1), "rejected": str(i)} for i in range(count)))


async def body(data: bytes, chunk: int = 37) -> AsyncIterator[bytes]:
    for begin in range(0, len(data), chunk):
        yield data[begin : begin + chunk]


async def add(store: DatasetStore, name: str, data: bytes, file_format: Format = "jsonl", **keys: str) -> Dataset:
    return await store.add(name, file_format, RowKeys(**keys), body(data))


def run_tree(name: str = "r1", **changes: Any) -> dict[str, Any]:
    tree: dict[str, Any] = {
        "name": name,
        "model": {"path": "some/model"},
        "data": {"datasets": [{"name": "sums"}]},
        "rollout": {"group_size": 2, "groups_per_step": 4},
        "trainer": {"steps": 10},
    }
    return merge(tree, changes)


def run_settings(name: str = "r1", **changes: Any) -> RunSettings:
    return RunSettings.model_validate(run_tree(name, **changes))


def written_run_tree(kind: str, **changes: Any) -> dict[str, Any]:
    """Of a kind whose answers are in its rows."""
    return {**run_tree(**changes), "kind": kind, "rollout": {"groups_per_step": 4}}


async def announce_all(redis: Redis, run: str = "r1") -> None:
    for member in ALL_ROLES:
        await announce(redis, run, member)


async def released(redis: Redis, run: str = "r1") -> list[Prompt]:
    """Every prompt on the stream, oldest first; no worker takes any in these tests."""
    codec: Codec[Prompt] = Codec(Prompt)
    return [codec.decode(fields[b"m"]) for _, fields in await redis.xrange(Keys(run).stream(PROMPTS))]
