"""The benchmark of weight versions publishes them in earnest: every phase has its seconds, both rates are there."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks import weights

GPUS = torch.cuda.device_count()


def gpus(transport: str, staging: str, count: int) -> object:
    marks = [pytest.mark.gpu, pytest.mark.skipif(count > GPUS, reason=f"there are no {count} GPUs")]
    return pytest.param(transport, staging, marks=marks)


@pytest.mark.parametrize(
    ("transport", "staging"),
    [
        ("gloo", "auto"),
        ("ipc", "auto"),
        gpus("ipc", "device", 1),
        gpus("nccl", "device", 2),
        gpus("nccl", "host", 2),
    ],
)
def test_versions_go_through_publisher_and_sidecar_are_proven_and_compared_with_plain_transfers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], transport: str, staging: str
) -> None:
    file, size = tmp_path / "rows.json", ["--sizes-gb", "0.05", "--versions", "2", "--bucket-mib", "32"]
    weights.main([*size, "--transport", transport, "--staging", staging, "--json", str(file)])
    (row,) = json.loads(file.read_text())
    place = {"auto": "cuda" if GPUS and transport == "ipc" else "cpu", "device": "cuda", "host": "host"}[staging]
    assert (row["transport"], row["staged_on"], row["tensors"], row["buckets"]) == (transport, place, 2, 2)
    assert row["nbytes"] == pytest.approx(0.05e9, rel=1e-3)
    assert set(row["seconds"]) == set(weights.PHASES)
    assert all(value > 0 for value in row["seconds"].values())
    assert row["seconds"]["transfer"] + row["seconds"]["load"] < row["seconds"]["total"]
    assert row["ratio_to_plain_broadcast"] > 0
    assert f"| {transport} | none | 0.05 | {place} |" in capsys.readouterr().out


@pytest.mark.parametrize("transport", ["gloo", "ipc"])
def test_versions_in_fp8_have_half_of_the_bytes_and_are_proven_likewise(tmp_path: Path, transport: str) -> None:
    file, size = tmp_path / "rows.json", ["--sizes-gb", "0.05", "--versions", "1", "--bucket-mib", "16"]
    weights.main([*size, "--transport", transport, "--quantization", "fp8", "--json", str(file)])
    (row,) = json.loads(file.read_text())
    assert (row["quantization"], row["tensors"]) == ("fp8", 4)
    assert row["nbytes"] == pytest.approx(0.025e9 * (1 + 4 / 128**2), rel=1e-3)
