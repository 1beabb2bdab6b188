"""docs/metrics.md names the metrics of a step, and no others."""

import re
from pathlib import Path

import pytest
from redis.asyncio import Redis

from tests.services.trainer.bench import Bench
from tests.services.trainer.recorded_groups import feed

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"
ROW = re.compile(r"^\| `(\w+)` \| ([a-z, ]+) \|", re.MULTILINE)


def on_the_page(kind: str) -> list[str]:
    return sorted(name for name, kinds in ROW.findall(PAGE.read_text()) if kind in kinds.split(", "))


@pytest.mark.parametrize("kind", ["rl", "sft"])
async def test_the_page_names_what_a_run_measures(redis: Redis, tmp_path: Path, kind: str) -> None:
    bench = Bench(redis, tmp_path, kind=kind, trainer={"steps": 1})
    await feed(redis, "r1", range(3), kind)
    await bench.train()
    assert sorted((await bench.records())[-1].metrics) == on_the_page(kind)
