"""On a GPU: packed training agrees with the CPU in float32, and learns in bfloat16."""

from pathlib import Path

import pytest
import torch

from services.trainer.backends.torch_backend import AdamW, TorchBackend
from services.trainer.load_model import load_policy
from services.trainer.losses.sft import sft_loss
from services.trainer.packing import MicroBatch
from tests.services.trainer.micro_batches import of_groups
from tests.services.trainer.recorded_groups import small_model

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")]


def micro_batches() -> list[MicroBatch]:
    return of_groups(range(20), 300)


def backend(folder: Path, device: str, dtype: torch.dtype) -> TorchBackend:
    policy = load_policy(folder, False, 1.0, torch.device(device))
    return TorchBackend(policy, dtype, AdamW((0.9, 0.95), 1e-8, 0.0, 1.0), folder)


def test_float32_steps_agree_with_the_cpu(tmp_path: Path) -> None:
    folder = small_model(tmp_path / "model")
    runs = [backend(folder, device, torch.float32) for device in ("cpu", "cuda")]
    for step in range(3):
        cpu, cuda = (run.train_step(micro_batches(), sft_loss, 1e-3, step) for run in runs)
        assert cuda["loss"] == pytest.approx(cpu["loss"], rel=1e-4)
        assert cuda["grad_norm"] == pytest.approx(cpu["grad_norm"], rel=1e-3)


def test_bfloat16_learns_and_comes_back_from_its_state(tmp_path: Path) -> None:
    folder = small_model(tmp_path / "model")
    one = backend(folder, "cuda", torch.bfloat16)
    losses = [one.train_step(micro_batches(), sft_loss, 1e-3, step)["loss"] for step in range(40)]
    assert losses[-1] < losses[0] - 0.5
    two = backend(folder, "cuda", torch.bfloat16)
    two.load_state({name: {key: t.clone() for key, t in file.items()} for name, file in one.state().items()})
    again = [each.train_step(micro_batches(), sft_loss, 1e-3, 40)["loss"] for each in (one, two)]
    assert again[0] == pytest.approx(again[1], rel=1e-3)
