"""A host's copy is the version that was announced, or is refused by name and made anew; never anything in between."""

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from services.rollout.host_copy import MARK, MODEL, HostCopy
from services.rollout.refused_files import (
    AlreadyApplied,
    DamagedVersion,
    FilesLate,
    FilesRefused,
    HostFailed,
    MissingLink,
    StoreAway,
)
from services.rollout.version_chain import VersionChain
from shared.messages import WeightFiles
from shared.weight_files import DELTA, MANIFEST
from shared.weight_store import WeightStore
from tests.services.trainer.written_versions import Written

LIFE_S = 20


def never() -> None:
    """There is time."""


class Host:
    """One host with its copy, and what it refused."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.copy = folder, HostCopy(folder)
        self.refused: list[FilesRefused] = []

    def restart(self) -> None:
        """Another process: it has not seen the bytes."""
        self.copy = HostCopy(self.folder)

    def take(self, files: WeightFiles, check: Callable[[], None] = never) -> None:
        chain = VersionChain(WeightStore(files.store), files, check)
        _, held = self.copy.take(chain, check, self.refused.append)
        held.release()

    def names(self) -> list[str]:
        return [refusal.name for refusal in self.refused]

    def holds(self, written: Written, version: int) -> bool:
        found = {n: t for file in (self.folder / MODEL).glob("*.safetensors") for n, t in load_file(file).items()}
        wanted = written.states[version]
        return found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.fixture(autouse=True)
def _no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.rollout.version_chain.VISIBLE_S", 0.0)


@pytest.fixture(params=["path", "object store"])
def written(request: pytest.FixtureRequest, tmp_path: Path) -> Written:
    store = str(tmp_path / "store") if request.param == "path" else f"memory://{tmp_path}"
    return Written(store, tmp_path / "model")


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path / "host")


def test_a_host_follows_from_version_to_version(written: Written, host: Host) -> None:
    for version in range(5):
        host.take(written.write(version))
        assert host.holds(written, version)
    assert host.refused == []
    config = json.loads((host.folder / MODEL / "config.json").read_text())
    assert config["dtype"] == "bfloat16"


def test_a_fresh_host_begins_with_the_newest_full_version_and_walks_the_chain(tmp_path: Path, host: Host) -> None:
    written = Written(str(tmp_path / "store"), tmp_path / "model", full_every=4)
    files = [written.write(version) for version in range(7)]
    for old in files[:4]:
        WeightStore(written.url).remove(old.folder)
    host.take(files[6])
    assert host.holds(written, 6)


def test_a_host_that_missed_versions_applies_those_that_it_lacks(written: Written, host: Host) -> None:
    files = [written.write(version) for version in range(4)]
    host.take(files[1])
    WeightStore(written.url).remove(files[0].folder)
    host.restart()
    host.take(files[3])
    assert host.holds(written, 3)
    assert host.refused == []


def test_a_host_at_the_version_before_takes_a_full_one_by_what_changed(tmp_path: Path, host: Host) -> None:
    written = Written(str(tmp_path / "store"), tmp_path / "model", full_every=2)
    host.take(written.write(0))
    host.take(written.write(1))
    full = written.write(2)
    for shard in (tmp_path / "store" / full.folder).glob("*.safetensors"):
        shard.unlink()
    host.take(full)
    assert host.holds(written, 2)


def test_the_same_version_again_is_there_already(written: Written, host: Host) -> None:
    written.write(0)
    files = written.write(1)
    host.take(files)
    host.take(files)
    host.take(written.write_again(1, in_full=True))
    assert host.holds(written, 1)
    host.take(written.write(2))
    assert host.holds(written, 2)
    assert host.refused == []


def test_a_copy_that_an_earlier_run_left_at_a_later_version_is_refused_and_made_anew(
    tmp_path: Path, host: Host
) -> None:
    """At version 3 of another run, versions 1, 2 and 3 of this one are not there already."""
    earlier = Written(str(tmp_path / "store"), tmp_path / "model", run="earlier", seed=1)
    for version in range(4):
        host.take(earlier.write(version))
    host.restart()
    written = Written(str(tmp_path / "store"), tmp_path / "model", run="r1", seed=2)
    written.write(0)
    for version in range(1, 5):
        host.take(written.write(version))
        assert host.holds(written, version)
    assert host.names() == ["stale_copy"]
    assert "version 3 of run earlier" in str(host.refused[0])
    assert "version 1 is of run r1" in str(host.refused[0])


def test_after_a_resume_of_the_trainer_a_host_takes_the_resumed_weights(
    written: Written, tmp_path: Path, host: Host
) -> None:
    for version in range(3):
        host.take(written.write(version))
    resumed = Written(written.url, tmp_path / "model", epoch=2, seed=9)
    host.take(resumed.write(1))
    assert host.holds(resumed, 1)
    host.take(resumed.write(2))
    assert host.holds(resumed, 2)
    assert host.refused == [], "a full version needs nothing of what was there"


def test_a_damaged_delta_is_refused_before_it_is_applied_and_a_full_version_helps(written: Written, host: Host) -> None:
    host.take(written.write(0))
    files = written.write(1)
    damage(written, files, DELTA)
    with pytest.raises(DamagedVersion, match=r"delta\.zst of v000001-delta"):
        host.take(files)
    assert host.holds(written, 0)
    host.take(written.write_again(1, in_full=True))
    assert host.holds(written, 1)
    assert host.names() == []


def test_a_damaged_full_version_is_refused_and_the_next_one_helps(written: Written, host: Host) -> None:
    files = written.write(0)
    damage(written, files, "model-00001-of-00002.safetensors")
    with pytest.raises(DamagedVersion, match="1 of 5 tensors are not what was written"):
        host.take(files)
    host.take(written.write_again(0, in_full=True))
    assert host.holds(written, 0)
    assert host.names() == ["half_written"]


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_a_damaged_file_beside_the_weights_is_refused(written: Written, host: Host, name: str) -> None:
    files = written.write(0)
    damage(written, files, name)
    with pytest.raises(DamagedVersion, match=name):
        host.take(files)


def test_a_manifest_that_is_not_the_announced_one_is_refused(written: Written, host: Host) -> None:
    files = written.write(0)
    damage(written, files, MANIFEST)
    with pytest.raises(DamagedVersion, match="does not have the hash that it was announced with"):
        host.take(files)


def test_a_base_that_was_replaced_by_another_version_is_refused(written: Written, host: Host) -> None:
    """Every manifest names the one below by its hash, as commits do."""
    base = written.write(0)
    files = written.write(1)
    other = Written(written.url, Path(written.model), seed=7, epoch=2).write(0)
    store = WeightStore(written.url)
    manifest = store.read(other.folder, MANIFEST)
    store._write(store._at(base.folder, MANIFEST), [manifest])
    with pytest.raises(DamagedVersion, match=base.folder):
        host.take(files)


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_a_missing_link_is_refused_by_name_and_a_full_version_helps(written: Written, host: Host, lost: int) -> None:
    files = [written.write(version) for version in range(3)]
    WeightStore(written.url).remove(files[lost].folder)
    with pytest.raises(MissingLink, match=files[lost].folder):
        host.take(files[2])
    host.take(written.write_again(2, in_full=True))
    assert host.holds(written, 2)


def test_a_delta_is_not_applied_twice_nor_to_a_later_version(written: Written, host: Host) -> None:
    files = [written.write(version) for version in range(3)]
    host.take(files[2])
    with pytest.raises(AlreadyApplied, match="at version 2 already, and 1 is asked for"):
        host.take(files[1])
    assert host.holds(written, 2)
    assert host.refused == [], "there is nothing to be made anew"


def test_a_copy_with_another_content_than_the_base_is_refused_and_made_anew(written: Written, host: Host) -> None:
    """The version has the right number and chain, and another checksum."""
    host.take(written.write(0))
    edit_mark(host, lambda manifest: manifest.update(checksum="0" * 64))
    host.take(written.write(1))
    assert host.holds(written, 1)
    assert host.names() == ["wrong_base"]


def test_a_tensor_that_changed_behind_the_delta_is_refused_and_the_copy_made_anew(written: Written, host: Host) -> None:
    """A delta without frames for a tensor says that it is the base's; here the base has another one."""
    host.take(written.write(0))

    def other_norm(manifest: dict[str, Any]) -> None:
        (norm,) = [t for s in manifest["shards"] for t in s["tensors"] if t["spec"]["name"] == "model.norm.weight"]
        norm["hash"] = "0" * 32

    edit_mark(host, other_norm)
    host.take(written.write(1))
    assert host.holds(written, 1)
    assert host.names() == ["wrong_base"]


def test_a_copy_that_was_damaged_while_nobody_looked_is_found_by_the_next_process(written: Written, host: Host) -> None:
    host.take(written.write(0))
    shard = sorted((host.folder / MODEL).glob("*.safetensors"))[1]
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    host.restart()
    host.take(written.write(1))
    assert host.holds(written, 1)
    assert host.names() == ["damaged_copy"]


@pytest.mark.parametrize("name", ["model-00001-of-00002.safetensors", "model"])
def test_a_copy_of_which_files_are_gone_is_made_anew(written: Written, host: Host, name: str) -> None:
    host.take(written.write(0))
    path = host.folder / MODEL / name if name.endswith("safetensors") else host.folder / MODEL
    path.rename(host.folder / "elsewhere")
    host.take(written.write(1))
    assert host.holds(written, 1)
    assert host.names() == ["damaged_copy"]


def test_a_mark_that_cannot_be_read_counts_as_half_written(written: Written, host: Host) -> None:
    host.take(written.write(0))
    (host.folder / MARK).write_bytes(b"")
    host.take(written.write(1))
    assert host.holds(written, 1)
    assert host.names() == ["half_written"]


@pytest.mark.parametrize("in_full", [False, True])
@pytest.mark.parametrize("call", range(1, 8))
def test_a_process_that_ends_while_it_changes_the_copy_leaves_it_whole_or_recognised_as_broken(
    written: Written, tmp_path: Path, host: Host, monkeypatch: pytest.MonkeyPatch, call: int, in_full: bool
) -> None:
    """It ends before the n-th piece is changed or file is written; the next process comes to the version anyway."""
    host.take(written.write(0))
    if in_full:
        written = Written(written.url, tmp_path / "model", epoch=2, seed=3)
    files = written.write(1)
    with monkeypatch.context() as patch:
        end_at(patch, call)
        with pytest.raises(Killed):
            host.take(files)
    host.restart()
    host.take(files)
    assert host.holds(written, 1)
    assert set(host.names()) <= {"half_written"}


def test_what_is_late_is_given_up_and_done_by_the_next_try(written: Written, host: Host) -> None:
    files = written.write(0)

    def late() -> None:
        raise FilesLate("too late")

    with pytest.raises(FilesLate):
        host.take(files, late)
    host.take(files)
    assert host.holds(written, 0)


def test_a_store_that_cannot_be_read_is_no_fault_of_the_version(
    written: Written, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = written.write(0)

    def away(*_: Any) -> bytes:
        raise PermissionError("no access")

    monkeypatch.setattr(WeightStore, "read", away)
    with pytest.raises(StoreAway, match="no access") as refusal:
        host.take(files)
    assert not refusal.value.of_store


def test_a_host_that_can_hold_no_copy_says_so(written: Written, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(HostFailed, match="cannot hold a copy of the weights"):
        Host(tmp_path / "file").take(written.write(0))


def test_engines_of_a_host_share_the_copy_and_none_changes_it_while_another_reads(
    written: Written, host: Host, tmp_path: Path
) -> None:
    first, second = written.write(0), written.write(1)
    _, reading = host.copy.take(VersionChain(WeightStore(first.store), first, never), never, host.refused.append)
    beside = Host(host.folder)
    beside.take(first)
    moved = threading.Thread(target=beside.take, args=(second,))
    moved.start()
    moved.join(0.3)
    assert moved.is_alive()
    assert host.holds(written, 0)
    reading.release()
    moved.join(LIFE_S)
    assert host.holds(written, 1)


class Killed(BaseException):
    """The process ends here."""


def end_at(monkeypatch: pytest.MonkeyPatch, call: int) -> None:
    """Before the n-th file of the host is written, piece is changed or search for damage begins."""
    count = 0

    def ending(owner: str, name: str) -> None:
        module = __import__(owner, fromlist=[name])
        original = getattr(module, name)

        def counted(*args: Any) -> Any:
            nonlocal count
            count += 1
            if count == call:
                raise Killed
            return original(*args)

        monkeypatch.setattr(module, name, counted)

    for owner, name in (("services.rollout.host_copy", "_write"), ("services.rollout.host_copy", "apply_frame")):
        ending(owner, name)
    ending("services.rollout.host_copy", "find_damage")


def damage(written: Written, files: WeightFiles, name: str) -> None:
    store = WeightStore(written.url)
    content = bytearray(store.read(files.folder, name))
    content[-1] ^= 1
    store._write(store._at(files.folder, name), [bytes(content)])


def edit_mark(host: Host, edit: Callable[[dict[str, Any]], Any]) -> None:
    mark = json.loads((host.folder / MARK).read_text())
    edit(mark["manifest"])
    (host.folder / MARK).write_text(json.dumps(mark))
