"""The header that is written is the one that the format's own library reads and writes."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from shared.messages import TensorSpec
from shared.safetensors_file import CODES, header_of, nbytes_of, spans_of


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


def raw(tensor: torch.Tensor) -> bytes:
    return tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
