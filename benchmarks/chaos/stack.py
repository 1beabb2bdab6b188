"""A folder -> a whole deployment that is up in it, started as `sluice up -d` starts one."""

import json
import sys
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from benchmarks.free_ports import free_ports
from deploy import embedded_redis
from services.trainer.tiny_model import TinyShape, write_tiny_model
from shared.deployment import Deployment, load_deployment
from sluice.cli.down import stop
from sluice.cli.up import start_detached
from sluice.client import Client
from sluice.connect import connect

Variant = Literal["fast", "real"]
SECONDS_PER_TOKEN = 0.03
"""Slow enough that most blows find groups under way."""
ROWS = 500
SMALLEST = TinyShape(hidden=32, layers=1, heads=2, kv_heads=1, intermediate=64, head_dim=16)
DATASET = "sums"


@dataclass(frozen=True, slots=True)
class Stack:
    """A deployment that is up."""

    deployment: Deployment
    client: Client
    home: Path
    model: Path
    redis_url: str


@contextmanager
def running_stack(home: Path, variant: Variant, seed: int, fsync: str) -> Generator[Stack]:
    """Everything from Redis to the trainer, with a dataset and a tiny model; stopped afterwards."""
    model = home / "model"
    write_tiny_model(model, seed, SMALLEST)
    source = [sys.executable, "-m", "benchmarks.chaos.token_source", str(seed), str(SECONDS_PER_TOKEN)]
    overrides = merged(free_ports(), {"paths": {"home": home}, "redis": {"fsync": fsync}})
    if variant == "fast":
        overrides = merged(overrides, {"engine": {"command": source}})
    deployment = load_deployment(environ={}, overrides=overrides)
    start_detached(deployment, home)
    try:
        with connect(deployment) as client:
            client.push_dataset(DATASET, _write_rows(home / "rows.jsonl"))
            yield Stack(deployment, client, home, model, embedded_redis.url(home, deployment.redis.port))
    finally:
        stop(home)


def merged(first: dict[str, dict[str, Any]], second: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Two trees of settings, two levels deep."""
    return {section: {**first.get(section, {}), **second.get(section, {})} for section in (*first, *second)}


def _write_rows(file: Path) -> Path:
    file.write_text("".join(json.dumps({"prompt": f"{i}+{i}=", "label": "e"}) + "\n" for i in range(ROWS)))
    return file
