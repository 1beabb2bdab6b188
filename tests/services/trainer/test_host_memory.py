"""Models whose tensors leave their device and come back: the same bits, the same objects, the same training."""

from pathlib import Path

import pytest
import torch
from torch import nn

from services.trainer.backends.torch_backend import AdamW, TorchBackend
from services.trainer.host_memory import HostMemory
from services.trainer.load_model import load_policy
from services.trainer.losses.sft import sft_loss
from tests.services.trainer.micro_batches import of_groups
from tests.services.trainer.recorded_groups import small_model

CPU = torch.device("cpu")
gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")]


def _backend(folder: Path, dtype: torch.dtype, device: torch.device, offload: bool = False) -> TorchBackend:
    policy = load_policy(folder, False, 1.0, device)
    return TorchBackend(policy, dtype, AdamW((0.9, 0.95), 1e-8, 0.01, 1.0, offload), folder)


def _train(backend: TorchBackend, memory: HostMemory | None) -> list[float]:
    losses: list[float] = []
    for step in range(1, 5):
        if memory is not None:
            memory.come_back()
        losses.append(backend.train_step(of_groups(range(step, step + 3)), sft_loss, 1e-2, step)["loss"])
        if memory is not None:
            memory.leave()
            memory.leave()  # is nothing more
    return losses


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("device", [CPU, pytest.param(torch.device("cuda"), marks=gpu)], ids=["cpu", "cuda"])
def test_training_that_leaves_the_device_after_every_step_has_the_same_losses_and_weights(
    tmp_path: Path, dtype: torch.dtype, device: torch.device
) -> None:
    folder = small_model(tmp_path / "model")
    stays, moves = (_backend(folder, dtype, device) for _ in range(2))
    memory = HostMemory(moves.tensors, device)
    assert _train(stays, None) == _train(moves, memory)
    memory.come_back()
    for part, tensors in stays.state().items():
        for name, tensor in tensors.items():
            assert torch.equal(tensor, moves.state()[part][name]), name


def test_state_and_export_can_be_had_while_the_models_are_away(tmp_path: Path) -> None:
    folder = small_model(tmp_path / "model")
    stays, moves = (_backend(folder, torch.bfloat16, CPU) for _ in range(2))
    memory = HostMemory(moves.tensors, CPU)
    _train(stays, None)
    _train(moves, memory)
    for backend, name in ((stays, "stays"), (moves, "moves")):
        backend.export(tmp_path / name)
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("stays", "moves")]
    assert files[0] == files[1]
    named = dict(moves.named_tensors())
    assert all(torch.equal(tensor, named[name]) for name, tensor in stays.named_tensors())
    moves.load_state(stays.state())  # what a resume writes, it writes there


def test_tensors_stay_the_objects_that_others_hold_and_keep_their_strides() -> None:
    plain, turned = nn.Parameter(torch.randn(5, 3)), torch.randn(4, 6).t()
    kept, scalar = [tensor.clone() for tensor in (plain, turned)], torch.tensor(3.0)
    memory = HostMemory(lambda: [plain, turned, plain, scalar], CPU)
    places = [tensor.data_ptr() for tensor in (plain, turned, scalar)]
    memory.leave()
    assert memory.nbytes == 4 * (15 + 24 + 1)
    assert all(tensor.data_ptr() != place for tensor, place in zip((plain, turned, scalar), places, strict=True))
    memory.come_back()
    assert turned.stride() == (1, 6)
    assert (torch.equal(plain, kept[0]), torch.equal(turned, kept[1]), float(scalar)) == (True, True, 3.0)


@pytest.mark.parametrize("offload", [False, True])
@pytest.mark.parametrize("device", [pytest.param(torch.device("cuda"), marks=gpu)], ids=["cuda"])
def test_nothing_of_a_model_stays_on_a_gpu_that_it_has_left(
    tmp_path: Path, device: torch.device, offload: bool
) -> None:
    torch.cuda.empty_cache()
    before, free = torch.cuda.memory_allocated(device), torch.cuda.mem_get_info(device)[0]
    backend = _backend(small_model(tmp_path / "model"), torch.bfloat16, device, offload)
    memory = HostMemory(backend.tensors, device)
    _train(backend, memory)
    on_device = torch.cuda.memory_allocated(device) - before
    assert on_device < 40 * 2**20  # what cuBLAS keeps to work in, and the tables of rotary embeddings
    assert torch.cuda.memory_reserved(device) < 128 * 2**20
    assert free - torch.cuda.mem_get_info(device)[0] < 2**30  # kernels are loaded to the GPU by their first use
    assert memory.nbytes > 0
