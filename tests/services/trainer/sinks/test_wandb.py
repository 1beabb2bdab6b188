"""Weights & Biases without a server: what its offline files hold."""

import importlib
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from services.trainer.sinks.choose_sinks import is_installed
from services.trainer.sinks.wandb import WeightsAndBiases
from tests.services.trainer.sinks.rows import place, rows

pytestmark = pytest.mark.skipif(not is_installed("wandb"), reason="wandb is not installed")


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")


BLOCK, HEADER = 32768, 7


def recorded(file: Path) -> Iterator[bytes]:
    """The records of a .wandb file: after seven bytes, LevelDB's log of blocks of (checksum, length, type, data)."""
    data, at, parts = file.read_bytes(), HEADER, b""
    while at + HEADER <= len(data):
        if BLOCK - at % BLOCK < HEADER:
            at += BLOCK - at % BLOCK
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        parts += data[at + HEADER : at + HEADER + length]
        at += HEADER + length
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""


def shown(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Run id -> (step, loss), over all files of the folder."""
    messages: Any = importlib.import_module("wandb.proto.wandb_internal_pb2")
    found: dict[str, list[tuple[int, float]]] = {}
    for file in sorted(folder.glob("wandb/offline-run-*/run-*.wandb")):
        steps = found.setdefault(file.stem.removeprefix("run-"), [])
        for data in recorded(file):
            record = messages.Record.FromString(data)
            if record.WhichOneof("record_type") == "history":
                items = {(i.key or "/".join(i.nested_key)): json.loads(i.value_json) for i in record.history.item}
                steps.append((record.history.step.num, items["loss"]))
    return found


def test_rows_have_their_steps_and_a_new_trainer_goes_on_under_the_same_id(tmp_path: Path) -> None:
    sink = WeightsAndBiases(place(tmp_path), 0)
    sink.write(rows(1, 2))
    sink.close()
    again = WeightsAndBiases(place(tmp_path), 9)
    assert again.last == 2
    again.write(rows(3, 3))
    again.close()
    assert shown(tmp_path) == {"r1-1700000000123456": [(1, 1.0), (2, 0.5), (3, pytest.approx(1 / 3))]}


def test_after_redis_has_lost_steps_a_new_run_has_all_rows(tmp_path: Path) -> None:
    sink = WeightsAndBiases(place(tmp_path), 0)
    sink.write(rows(1, 3))
    sink.close()
    rewound = WeightsAndBiases(place(tmp_path), 2)
    assert rewound.last == 0
    rewound.write(rows(1, 2, loss=8.0))
    rewound.close()
    assert shown(tmp_path)["r1-1700000000123456-2"] == [(1, 8.0), (2, 4.0)]
