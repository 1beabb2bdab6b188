"""What a trainer writes: whole Hugging Face folders, and deltas against the version before; nothing by halves."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from shared.messages import WeightFiles
from shared.weight_files import DELTA, MANIFEST, VersionManifest, decode_manifest
from shared.weight_store import WeightStore
from tests.services.trainer.written_versions import Written


@pytest.fixture
def written(tmp_path: Path) -> Written:
    return Written(str(tmp_path / "store"), tmp_path / "model")


def manifest_of(written: Written, files: WeightFiles) -> VersionManifest:
    return decode_manifest(WeightStore(written.url).read(files.folder, MANIFEST), files.manifest)


def test_a_full_version_is_a_hugging_face_folder_with_the_staged_bytes(tmp_path: Path) -> None:
    written = Written(str(tmp_path / "store"), tmp_path / "model", full_every=None)
    files = written.write(0)
    folder = tmp_path / "store" / files.folder
    names = {"config.json", "tokenizer.json", "model.safetensors.index.json", MANIFEST}
    shards = {"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"}
    assert {path.name for path in folder.iterdir()} == names | shards
    found = {name: tensor for shard in sorted(shards) for name, tensor in load_file(folder / shard).items()}
    assert found.keys() == written.states[0].keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in written.states[0].items())
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == found.keys()
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"
    assert (files.kind, files.base_version) == ("full", None)


def test_transformers_loads_a_full_version_with_tied_embeddings(tmp_path: Path) -> None:
    """A tied head is no tensor of its own, here as in the checkpoints of transformers."""
    from transformers import AutoModelForCausalLM

    from services.trainer.tiny_model import TinyShape, write_tiny_model

    sizes = TinyShape(hidden=32, layers=1, heads=2, kv_heads=1, intermediate=48, head_dim=16)
    write_tiny_model(tmp_path / "tied", 0, sizes, tie_embeddings=True)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "tied", dtype=torch.bfloat16)
    written = Written(str(tmp_path / "store"), tmp_path / "model", tensors=dict(model.named_parameters()))
    config = (tmp_path / "tied" / "config.json").read_text()
    (tmp_path / "model" / "config.json").write_text(config)
    files = written.write_again(0)
    read: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "store" / files.folder, output_loading_info=True)
    loaded, report = read
    assert not report["missing_keys"]
    assert loaded.dtype == torch.bfloat16
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight)


def test_a_delta_names_its_base_and_holds_no_frame_of_a_tensor_or_piece_that_did_not_change(written: Written) -> None:
    first, second = written.write(0), written.write(1)
    manifest = manifest_of(written, second)
    assert (second.kind, second.base_version) == ("delta", 0)
    assert manifest.delta is not None
    assert (manifest.delta.base.folder, manifest.delta.base.manifest) == (first.folder, first.manifest)
    assert second.base_checksum == manifest.delta.base.checksum == manifest_of(written, first).checksum
    frames = {tensor.spec.name: tensor.frames for tensor in manifest.tensors}
    assert frames["model.norm.weight"] == frames["model.scale"] == []
    assert 0 in frames["model.embed_tokens.weight"]
    assert any(frames["model.embed_tokens.weight"])
    folder = Path(written.url) / second.folder
    assert sorted(path.name for path in folder.iterdir()) == [DELTA, MANIFEST]
    assert (folder / DELTA).stat().st_size == manifest.delta.nbytes == sum(map(sum, frames.values()))


def test_a_version_in_which_nothing_changed_is_an_empty_delta(written: Written) -> None:
    written.write(0)
    manifest = manifest_of(written, written.write_again(1))
    assert manifest.delta is not None
    assert manifest.delta.nbytes == 0


def test_every_nth_version_is_full_and_says_too_what_changed(tmp_path: Path) -> None:
    written = Written(str(tmp_path / "store"), tmp_path / "model", full_every=3)
    files = [written.write(version) for version in range(7)]
    assert [each.kind for each in files] == ["full", "delta", "delta", "full", "delta", "delta", "full"]
    manifest = manifest_of(written, files[3])
    assert manifest.delta is not None
    assert manifest.delta.base.folder == files[2].folder


def test_a_version_is_written_in_full_when_asked_for_and_the_next_one_builds_on_that(written: Written) -> None:
    written.write(0)
    written.write(1)
    again = written.write_again(1, in_full=True)
    following = manifest_of(written, written.write(2))
    assert again.kind == "full"
    assert following.delta is not None
    assert following.delta.base.folder == again.folder


def test_another_trainer_begins_with_a_full_version_whatever_is_there(written: Written, tmp_path: Path) -> None:
    """After a resume engines get the resumed weights, and not a change of something that nobody has."""
    written.write(0)
    written.write(1)
    resumed = Written(written.url, tmp_path / "model", epoch=2, seed=5)
    files = resumed.write(1)
    manifest = manifest_of(resumed, files)
    assert (files.kind, manifest.delta, manifest.place) == ("full", None, 0)
    assert manifest.chain != manifest_of(written, written.write(2)).chain


@pytest.mark.parametrize("fails_at", [DELTA, "model-00002-of-00002.safetensors", "config.json", MANIFEST])
def test_a_write_that_fails_leaves_nothing_and_the_next_version_is_full(
    written: Written, monkeypatch: pytest.MonkeyPatch, fails_at: str
) -> None:
    written.write(0)
    with monkeypatch.context() as patch:
        fail_at(patch, fails_at)
        with pytest.raises(OSError, match="No space left"):
            written.write(1, in_full=True)
    assert len(list(Path(written.url).iterdir())) == 1
    files = written.write(2)
    assert (files.kind, manifest_of(written, files).delta) == ("full", None)


@pytest.mark.parametrize("url", ["memory://writer-crash", ""])
def test_a_trainer_that_ends_while_it_writes_leaves_no_version_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    """On an object store files may be left; without a manifest they are none."""
    written = Written(url or str(tmp_path / "store"), tmp_path / "model")
    whole = written.write(0)
    fail_at(monkeypatch, MANIFEST)
    monkeypatch.setattr(WeightStore, "remove", lambda *_: None)
    with pytest.raises(OSError, match="No space left"):
        written.write(1)
    store = WeightStore(written.url)
    assert [folder for folder in store.folders() if store.is_whole(folder)] == [whole.folder]
    assert len(store.folders()) == 2


def fail_at(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    original: Callable[..., None] = WeightStore._write

    def write(self: WeightStore, path: str, parts: Iterable[Any]) -> None:
        if path.endswith(name):
            raise OSError(28, "No space left on device")
        original(self, path, parts)

    monkeypatch.setattr(WeightStore, "_write", write)
