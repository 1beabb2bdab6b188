"""The benchmark of weight versions publishes them in earnest: every phase has its seconds, both rates are there."""

import json
from pathlib import Path

import pytest

from benchmarks import weights


def test_versions_go_through_publisher_and_sidecar_and_are_compared_with_a_plain_broadcast(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "rows.json"
    weights.main(["--sizes-gb", "0.05", "--versions", "2", "--bucket-mib", "32", "--json", str(file)])
    (row,) = json.loads(file.read_text())
    assert (row["transport"], row["staged_on"], row["tensors"], row["buckets"]) == ("gloo", "cpu", 2, 2)
    assert row["nbytes"] == pytest.approx(0.05e9, rel=1e-3)
    assert set(row["seconds"]) == set(weights.PHASES)
    assert all(value > 0 for value in row["seconds"].values())
    assert row["seconds"]["transfer"] + row["seconds"]["load"] < row["seconds"]["total"]
    assert row["ratio_to_plain_broadcast"] > 0
    assert "| gloo | 0.05 | cpu |" in capsys.readouterr().out
