"""A folder of versions, on a path and on an object store: whole or not there."""

from pathlib import Path

import fsspec
import pytest

from shared.errors import RunRejected
from shared.weight_files import MANIFEST
from shared.weight_store import WeightStore


@pytest.fixture(params=["path", "file URL", "object store"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> WeightStore:
    urls = {"path": str(tmp_path / "s"), "file URL": f"file://{tmp_path}/s", "object store": f"memory://{tmp_path}/s"}
    return WeightStore(urls[request.param])


def test_what_was_written_is_read_in_pieces_and_as_a_whole(store: WeightStore) -> None:
    with store.writing("v1") as write:
        write("model", [b"ab", memoryview(b"cd"), b""])
        write(MANIFEST, [b"{}"])
    assert store.folders() == ["v1"]
    assert store.is_whole("v1")
    assert store.read("v1", "model") == b"abcd" == b"".join(store.stream("v1", "model"))


def test_a_store_without_a_folder_holds_nothing(store: WeightStore) -> None:
    assert store.folders() == []
    assert not store.is_whole("v1")
    with pytest.raises(FileNotFoundError):
        store.read("v1", MANIFEST)
    store.remove("v1")


def test_nothing_is_seen_of_a_folder_before_it_is_whole_nor_left_of_one_that_failed(store: WeightStore) -> None:
    with pytest.raises(KeyError), store.writing("v1") as write:
        write("model", [b"ab"])
        assert not store.is_whole("v1")
        raise KeyError
    assert store.folders() == []


def test_a_folder_without_its_manifest_is_not_whole_while_it_is_removed(
    store: WeightStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    with store.writing("v1") as write:
        write("model", [b"ab"])
        write(MANIFEST, [b"{}"])
    monkeypatch.setattr("shutil.rmtree", lambda *_, **__: None)
    monkeypatch.setattr(type(store._fs), "rm", lambda *_, **__: None)
    store.remove("v1")
    assert store.folders() == ["v1"]
    assert not store.is_whole("v1")


def test_a_path_is_announced_as_the_one_that_it_is_for_everybody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert WeightStore("weights").url == str(tmp_path / "weights") == WeightStore(f"file://{tmp_path}/weights").url
    assert WeightStore("memory://weights").url == "memory://weights"


@pytest.mark.parametrize(("url", "reason"), [("nowhere://x", "Protocol not known"), ("s3://bucket/x", "s3fs")])
def test_an_address_that_cannot_be_used_is_named_with_what_is_missing(url: str, reason: str) -> None:
    if url.startswith("s3") and "s3fs" in fsspec.available_protocols():
        pytest.skip("s3fs is installed")
    with pytest.raises(RunRejected, match=f"weights.folder is '{url}'.*{reason}"):
        WeightStore(url)


def test_whatever_a_file_system_raises_is_an_os_error(store: WeightStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> bytes:
        raise RuntimeError("the client's own error")

    monkeypatch.setattr(type(store._fs), "cat_file", fail)
    with pytest.raises(OSError, match="RuntimeError: the client's own error"):
        store.read("v1", MANIFEST)
