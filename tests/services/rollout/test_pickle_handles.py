"""The pickle that SGLang reads: its own reader allows all that is in it, and it opens memory of another process."""

import base64
import importlib.util
import pickletools
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from services.rollout.pickle_handles import pickle_bucket
from services.trainer.lend_memory import LentMemory
from shared.memory_handle import MemoryHandle
from shared.messages import TensorSpec

BUCKET = [TensorSpec("model.norm.weight", "float32", [2, 3]), TensorSpec("a.b", "bfloat16", [10])]
FORGED = MemoryHandle("cuda", 44, "aGFuZGxl", device="GPU-1", offset=512, counter="Y291bnQ=", event="ZXZlbnQ=")


def names_in(pickled: str) -> set[tuple[str, str]]:
    opcodes = pickletools.genops(base64.b64decode(pickled))
    named = [str(argument).split(" ") for opcode, argument, _ in opcodes if opcode.name == "GLOBAL"]
    return {(module, name) for module, name in named}


def test_another_process_finds_the_tensors_where_they_lie() -> None:
    flat = torch.empty(44, dtype=torch.uint8)
    lent = LentMemory()
    pickled = pickle_bucket(BUCKET, lent.lend(flat))
    flat[:24].view(torch.float32).copy_(torch.arange(6.0))
    flat[24:].view(torch.bfloat16).copy_(torch.arange(10.0))
    reader = f"""
import base64, pickle, torch
found = pickle.loads(base64.b64decode({pickled!r}))
for meta in found["metadata"]:
    tensor = found["flattened_tensor"][meta.start_idx : meta.end_idx].view(meta.dtype).reshape(meta.shape)
    print(meta.name, meta.numel, tuple(tensor.shape), tensor.dtype, tensor.sum().item())
"""
    for _ in range(2):  # every reader has a handle of its own
        answer = subprocess.run([sys.executable, "-c", reader], capture_output=True, text=True, timeout=60, check=False)
        assert answer.stdout.splitlines() == [
            "model.norm.weight 24 (2, 3) torch.float32 15.0",
            "a.b 20 (10,) torch.bfloat16 45.0",
        ], answer.stderr
        reader = reader.replace(pickled, pickle_bucket(BUCKET, lent.lend(flat)))


@pytest.mark.parametrize("handle", [FORGED, MemoryHandle("shared", 44, "bmFtZQ==", manager="c29ja2V0")])
def test_sglang_allows_every_name_in_it(handle: MemoryHandle) -> None:
    spec = importlib.util.find_spec("sglang")
    assert spec is not None and spec.submodule_search_locations
    source = (Path(next(iter(spec.submodule_search_locations))) / "srt" / "utils" / "common.py").read_text()
    if "ALLOWED_GLOBALS" not in source:
        pytest.skip("before 0.5.20 it allows whole modules")
    for module, name in names_in(pickle_bucket(BUCKET, handle)):
        assert f'("{module}", "{name}")' in source


def test_handles_of_a_gpu_come_in_the_order_that_torch_reads_them() -> None:
    pickled = base64.b64decode(pickle_bucket(BUCKET, FORGED))
    found = [argument for _, argument, _ in pickletools.genops(pickled) if isinstance(argument, bytes | int | str)]
    assert found[found.index("GPU-1") :][:8] == ["GPU-1", b"handle", 44, 512, b"count", 0, b"event", "metadata"]


@pytest.mark.parametrize(
    ("bucket", "complaint"),
    [
        ([TensorSpec("a", "bfloat16\ncos\nsystem", [22])], "has the type"),
        ([TensorSpec("a", "float32", [12])], "have 48 bytes, its memory 44"),
    ],
)
def test_what_is_no_bucket_of_that_memory_is_refused(bucket: list[TensorSpec], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        pickle_bucket(bucket, FORGED)
