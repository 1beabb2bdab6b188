"""The header that is written is the one that the format's own library reads and writes."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from shared.messages import TensorSpec
from shared.safetensors_file import CODES, header_of, nbytes_of, shapes_in, spans_of


@pytest.mark.parametrize("dtype", CODES)
def test_the_library_reads_what_is_written_of_every_type(tmp_path: Path, dtype: str) -> None:
    tensors = {
        "matrix": torch.arange(6).reshape(2, 3).to(getattr(torch, dtype)),
        "number": torch.ones(()).to(getattr(torch, dtype)),
        "none": torch.zeros(0, 4).to(getattr(torch, dtype)),
    }
    specs = [TensorSpec(name, dtype, list(tensor.shape)) for name, tensor in tensors.items()]
    content = b"".join(map(raw, tensors.values()))
    file = tmp_path / "model.safetensors"
    file.write_bytes(header_of(specs) + content)
    found = load_file(file)
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].shape == tensor.shape
        assert raw(found[name]) == raw(tensor)
    with safe_open(file, "pt") as opened:
        assert opened.metadata() == {"format": "pt"}


def test_spans_are_where_the_bytes_of_each_tensor_are() -> None:
    specs = [TensorSpec("a", "float32", [3]), TensorSpec("b", "bfloat16", [2, 2]), TensorSpec("c", "uint8", [])]
    header, spans = header_of(specs), spans_of(specs)
    assert len(header) % 8 == 0
    assert [(spans[name].start - len(header), spans[name].nbytes) for name in "abc"] == [(0, 12), (12, 8), (20, 1)]
    assert [nbytes_of(spec) for spec in specs] == [12, 8, 1]


def test_the_shapes_of_a_folder_are_those_in_all_its_files(tmp_path: Path) -> None:
    assert shapes_in(tmp_path) == {}
    save_file({"a": torch.zeros(2, 3), "b": torch.zeros(())}, tmp_path / "model-1.safetensors", {"format": "pt"})
    save_file({"c": torch.zeros(5, dtype=torch.bfloat16)}, tmp_path / "model-2.safetensors")
    assert shapes_in(tmp_path) == {"a": [2, 3], "b": [], "c": [5]}
    (tmp_path / "model-3.safetensors").write_bytes(b"\xff" * 40)
    with pytest.raises(ValueError, match="is no safetensors file"):
        shapes_in(tmp_path)


def raw(tensor: torch.Tensor) -> bytes:
    return tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
