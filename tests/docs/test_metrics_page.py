"""docs/metrics.md names the metrics of a step, and no others."""

import re
from pathlib import Path

import pytest
from redis.asyncio import Redis

from tests.services.trainer.bench import Bench
from tests.services.trainer.recorded_groups import feed

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"
ROW = re.compile(r"^\| `(\w+)` \| ([a-z, ]+) \|", re.MULTILINE)
OF_DPO = re.compile(r"^\| `(\w+)` \| `trainer.dpo` \|", re.MULTILINE)
"""In the table of what comes with settings: of every run of kind dpo."""


def on_the_page(kind: str) -> list[str]:
    text = PAGE.read_text()
    names = [name for name, kinds in ROW.findall(text) if kind in kinds.split(", ")]
    return sorted([*names, *(OF_DPO.findall(text) if kind == "dpo" else [])])


@pytest.mark.parametrize("kind", ["rl", "sft", "dpo"])
async def test_the_page_names_what_a_run_measures(redis: Redis, tmp_path: Path, kind: str) -> None:
    bench = Bench(redis, tmp_path, kind=kind, trainer={"steps": 1})
    await feed(redis, "r1", range(3), kind)
    await bench.train()
    assert sorted((await bench.records())[-1].metrics) == on_the_page(kind)
