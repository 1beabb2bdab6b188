"""Datasets on disk: all rows or nothing, any row by its number, JSONL and Parquet."""

import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from services.gateway.check_row import Row, RowKeys
from services.gateway.dataset_store import ASIDE, REPLACED, STALE_S, DatasetStore
from services.gateway.refusals import Refusal
from tests.services.gateway.gateway_cases import add, body, lines, sums


def files(store: DatasetStore, tmp_path: Path) -> list[str]:
    return sorted(str(p.relative_to(tmp_path / "datasets")) for p in (tmp_path / "datasets").rglob("*"))


def parquet(path: Path, rows: list[dict[str, Any]]) -> bytes:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path.read_bytes()


async def test_any_row_is_read_by_its_number(store: DatasetStore) -> None:
    dataset = await add(store, "sums", sums(5000))
    rows = store.open("sums")
    assert (dataset.rows, len(rows), dataset.labels, dataset.text_labels) == (5000, 5000, True, True)
    assert [rows.read(i).prompt for i in (4999, 0, 2500)] == ["4999+1=", "0+1=", "2500+1="]
    rows.close()
    assert [number for number, _ in store.preview("sums", 4998, 10)] == [4998, 4999]
    assert store.preview("sums", 9000, 10) == []


async def test_what_can_be_said_of_all_labels_is_kept(store: DatasetStore) -> None:
    numbers = await add(store, "numbers", lines({"prompt": "a", "label": 1}))
    partly = await add(store, "partly", lines({"prompt": "a", "label": "x"}, {"prompt": "b"}))
    assert (numbers.labels, numbers.text_labels) == (True, False)
    assert (partly.labels, partly.text_labels) == (False, False)


async def test_wrong_rows_are_listed_by_line_and_nothing_is_stored(store: DatasetStore, tmp_path: Path) -> None:
    data = sums(3) + b"{broken\n" + lines({"prompt": ""}) + sums(1)
    with pytest.raises(Refusal) as refused:
        await add(store, "sums", data)
    assert refused.value.status == 422
    assert [detail["line"] for detail in refused.value.details] == [4, 5]
    assert files(store, tmp_path) == [ASIDE]


async def test_only_the_first_twenty_errors_are_listed(store: DatasetStore) -> None:
    with pytest.raises(Refusal, match="500 wrong; the first 20 are listed") as refused:
        await add(store, "sums", b"{\n" * 500)
    assert [detail["line"] for detail in refused.value.details] == list(range(1, 21))


@pytest.mark.parametrize("data", [b"", b"\n\n  \n"])
async def test_a_file_without_rows_is_refused(store: DatasetStore, tmp_path: Path, data: bytes) -> None:
    with pytest.raises(Refusal, match="no rows"):
        await add(store, "sums", data)
    assert files(store, tmp_path) == [ASIDE]


async def test_an_upload_that_breaks_off_leaves_nothing(store: DatasetStore, tmp_path: Path) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield sums(100)
        raise ConnectionResetError

    with pytest.raises(Refusal):
        await store.add("sums", "jsonl", RowKeys(), broken())
    assert files(store, tmp_path) == [ASIDE]


async def test_a_gateway_that_stops_abandons_the_check_of_an_upload(store: DatasetStore, tmp_path: Path) -> None:
    store.close()
    with pytest.raises(Refusal, match="stopping"):
        await add(store, "sums", sums(3))
    assert files(store, tmp_path) == [ASIDE]


async def test_parquet_rows_become_the_same_rows(store: DatasetStore, tmp_path: Path) -> None:
    rows = [
        {"q": [{"role": "user", "content": f"{i}+1="}], "answer": i + 1, "metadata": {"level": "easy"}, "unused": 0.5}
        for i in range(3000)
    ]
    dataset = await add(
        store, "sums", parquet(tmp_path / "p", rows), "parquet", prompt="q", label="answer", metadata="metadata"
    )
    assert (dataset.rows, dataset.labels, dataset.text_labels) == (3000, True, False)
    expected = Row([{"role": "user", "content": "2999+1="}], 3000, {"level": "easy"})
    assert store.preview("sums", 2999, 1) == [(2999, expected)]


async def test_wrong_parquet_is_refused_with_its_columns_or_its_row(store: DatasetStore, tmp_path: Path) -> None:
    with pytest.raises(Refusal, match="the columns are question, label"):
        await add(store, "sums", parquet(tmp_path / "p", [{"question": "a", "label": "b"}]), "parquet")
    with pytest.raises(Refusal, match="not a readable Parquet file"):
        await add(store, "sums", sums(3), "parquet")
    with pytest.raises(Refusal, match="line 2: 'prompt' is null"):
        await add(store, "sums", parquet(tmp_path / "p", [{"prompt": "a"}, {"prompt": None}]), "parquet")
    assert store.names() == []


@pytest.mark.parametrize("name", ["..", "Sums", ".incoming", "a|b", "a" * 65, ""])
async def test_a_name_that_is_no_dataset_name_is_refused(store: DatasetStore, name: str) -> None:
    with pytest.raises(Refusal) as refused:
        await add(store, name, sums(1))
    assert refused.value.status == 422
    with pytest.raises(Refusal, match="there is no dataset"):
        store.get(name)


async def test_a_taken_name_is_refused_and_a_deleted_one_is_free(store: DatasetStore) -> None:
    await add(store, "sums", sums(1))
    with pytest.raises(Refusal, match="exists"):
        await add(store, "sums", sums(2))
    with pytest.raises(Refusal, match="did you mean sums"):
        store.get("sum")
    store.delete("sums")
    assert (await add(store, "sums", sums(2))).rows == 2


async def test_a_replacement_takes_the_place_of_a_dataset_once_all_its_rows_are_good(
    store: DatasetStore, tmp_path: Path
) -> None:
    await add(store, "sums", sums(3))
    open_rows = store.open("sums")
    for data in (b"no json", b""):
        with pytest.raises(Refusal):
            await store.add("sums", "jsonl", RowKeys(), body(data), replace=True)
    assert store.get("sums").rows == 3
    await store.add("sums", "jsonl", RowKeys(), body(sums(5)), replace=True)
    assert (store.get("sums").rows, len(open_rows), open_rows.read(2).prompt) == (5, 3, "2+1=")
    open_rows.close()
    await store.add("new", "jsonl", RowKeys(), body(sums(1)), replace=True)
    assert store.names() == ["new", "sums"]
    assert list((tmp_path / "datasets" / ASIDE).iterdir()) == []


async def test_a_gateway_that_was_killed_in_the_moment_of_a_replacement_finds_the_old_dataset(
    store: DatasetStore, tmp_path: Path
) -> None:
    await add(store, "sums", sums(3))
    folder = tmp_path / "datasets"
    (folder / "sums").rename(folder / ASIDE / f"{REPLACED}1234")
    assert DatasetStore(folder).get("sums").rows == 3


async def test_what_a_killed_gateway_left_aside_is_swept_away_once_it_is_old(tmp_path: Path) -> None:
    folder = tmp_path / "datasets"
    for name, age in (("old", STALE_S + 60), ("new", 0)):
        left = folder / ASIDE / name
        left.mkdir(parents=True)
        (left / "upload").write_bytes(b"x")
        for path in (left / "upload", left):
            os.utime(path, (path.stat().st_mtime - age,) * 2)
    store = DatasetStore(folder)
    assert [p.name for p in (folder / ASIDE).iterdir()] == ["new"]
    assert store.names() == []
