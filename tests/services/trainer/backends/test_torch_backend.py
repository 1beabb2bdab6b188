"""The torch backend: AdamW to the formula, the same bits again, state that comes back whole, learning that is real."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from services.trainer.losses.policy_clip import policy_clip_loss

from services.trainer.backends.torch_backend import AdamW, TorchBackend
from services.trainer.load_model import load_policy
from services.trainer.losses.sft import sft_loss
from services.trainer.losses.token_loss import TokenLoss, TrainedTokens
from services.trainer.losses.token_weights import token_weights
from services.trainer.packing import MicroBatch, pack
from services.trainer.tiny_model import TinyShape, write_tiny_model
from services.trainer.training_batch import TrainingBatch, training_batch
from shared.errors import RunRejected
from tests.services.trainer.recorded_groups import rollouts, small_model

ADAMW = AdamW((0.9, 0.95), 1e-8, 0.1, 1.0)


def backend(folder: Path, dtype: torch.dtype = torch.float32, adamw: AdamW = ADAMW) -> TorchBackend:
    return TorchBackend(load_policy(folder, False, 1.0, torch.device("cpu")), dtype, adamw, folder)


def micro_batches(groups: range, max_tokens: int = 64) -> list[MicroBatch]:
    return packed(training_batch([r for group in groups for r in rollouts(group)]), max_tokens)


def packed(batch: TrainingBatch, max_tokens: int) -> list[MicroBatch]:
    weights = token_weights(batch.loss_mask, batch.attempt, "token")
    return pack(batch, batch.rewards.float()[batch.attempt] - 0.5, weights, max_tokens)


def clip(logprobs: torch.Tensor, tokens: TrainedTokens) -> TokenLoss:
    return policy_clip_loss(logprobs, tokens, clip_low=0.2, clip_high=0.2)


def weights(of: TorchBackend) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in of.named_tensors()}


def test_a_step_is_adamw_with_clipped_gradients_and_decay_on_matrices_alone(tmp_path: Path) -> None:
    folder = small_model(tmp_path / "model")
    ours, parts = backend(folder), micro_batches(range(3))
    before = weights(ours)
    # one plain backward pass for the gradients
    model = load_policy(folder, False, 1.0, torch.device("cpu"))
    sum((sft_loss(model(part), part.trained).loss for part in parts), torch.zeros(())).backward()
    gradients = {name: p.grad.double() for name, p in model.causal_lm.named_parameters() if p.grad is not None}
    norm = math.sqrt(sum(float(g.square().sum()) for g in gradients.values()))
    metrics = ours.train_step(parts, sft_loss, 0.01, 0)
    assert metrics["grad_norm"] == pytest.approx(norm, rel=1e-5)
    assert norm > ADAMW.max_grad_norm
    for name, tensor in weights(ours).items():
        clipped = gradients[name] / norm
        # the first step of Adam: both moments are the gradient's own, so the move is lr * g / (|g| + eps)
        decayed = before[name].double() * (1 - 0.01 * (0.1 if before[name].ndim >= 2 else 0.0))
        expected = decayed - 0.01 * clipped / (clipped.abs() + 1e-8)
        sure = clipped.abs() > 1e-6
        torch.testing.assert_close(tensor.double()[sure], expected[sure], rtol=1e-4, atol=1e-5, msg=name)


def test_the_same_batches_and_seeds_give_the_same_bits(tmp_path: Path) -> None:
    folder = small_model(tmp_path / "model")
    results: list[dict[str, torch.Tensor]] = []
    for _ in range(2):
        one = backend(folder)
        for step in range(3):
            one.train_step(micro_batches(range(step * 3, step * 3 + 3)), clip, 1e-3, step)
        results.append(weights(one))
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_state_comes_back_whole_and_training_goes_on_with_the_same_bits(tmp_path: Path, dtype: torch.dtype) -> None:
    folder = small_model(tmp_path / "model")
    one = backend(folder, dtype)
    one.train_step(micro_batches(range(3)), clip, 1e-3, 1)
    copied = {name: {key: t.clone() for key, t in file.items()} for name, file in one.state().items()}
    two = backend(folder, dtype)
    two.load_state(copied)
    for each in (one, two):
        each.train_step(micro_batches(range(3, 6)), clip, 1e-3, 2)
    for name, file in one.state().items():
        for key, tensor in file.items():
            assert torch.equal(two.state()[name][key], tensor), (name, key)


def test_bfloat16_models_move_by_less_than_their_own_precision(tmp_path: Path) -> None:
    one = backend(small_model(tmp_path / "model"), torch.bfloat16, AdamW((0.9, 0.95), 1e-8, 0.0, 1.0))
    before = weights(one)
    for step in range(30):
        one.train_step(micro_batches(range(3)), sft_loss, 2e-5, step)
    after = weights(one)
    assert {tensor.dtype for tensor in after.values()} == {torch.bfloat16}
    moved = (after["lm_head.weight"] != before["lm_head.weight"]).float().mean()
    assert moved > 0.5  # single moves are below the rounding step of most weights; the float32 masters add them up


def test_bfloat16_gradients_are_added_up_in_float32(tmp_path: Path) -> None:
    folder = small_model(tmp_path / "model")
    whole, cut = backend(folder, torch.bfloat16), backend(folder, torch.bfloat16)
    norms = [
        each.train_step(micro_batches(range(40), budget), sft_loss, 1e-4, 0)["grad_norm"]
        for each, budget in ((whole, 10_000), (cut, 20))
    ]
    assert norms[0] == pytest.approx(norms[1], rel=3e-3)


def test_tied_weights_are_named_once(tmp_path: Path) -> None:
    write_tiny_model(tmp_path / "tied", 0, TinyShape(hidden=32, layers=1, intermediate=48), tie_embeddings=True)
    names = [name for name, _ in backend(tmp_path / "tied").named_tensors()]
    assert "model.embed_tokens.weight" in names
    assert "lm_head.weight" not in names


def test_names_and_shapes_are_those_of_the_checkpoint(tmp_path: Path) -> None:
    folder = small_model(tmp_path / "model")
    on_disk = load_file(folder / "model.safetensors")
    named = weights(backend(folder))
    assert named.keys() == on_disk.keys()
    assert all(torch.equal(named[name], tensor) for name, tensor in on_disk.items())


def test_a_gradient_that_is_not_finite_skips_the_step_and_says_so(tmp_path: Path) -> None:
    one = backend(small_model(tmp_path / "model"))
    before = weights(one)

    def broken(logprobs: torch.Tensor, tokens: TrainedTokens) -> TokenLoss:
        return TokenLoss((logprobs * torch.inf).sum())

    assert one.train_step(micro_batches(range(3)), broken, 1e-3, 0)["step_skipped"] == 1.0
    assert all(torch.equal(before[name], tensor) for name, tensor in weights(one).items())
    assert one.train_step(micro_batches(range(3)), clip, 1e-3, 0)["step_skipped"] == 0.0


def test_a_step_without_a_trained_token_leaves_the_weights(tmp_path: Path) -> None:
    one = backend(small_model(tmp_path / "model"))
    before = weights(one)
    assert one.train_step([], clip, 1e-3, 0)["grad_norm"] == 0.0
    assert all(torch.equal(before[name], tensor) for name, tensor in weights(one).items())


def test_the_state_of_another_model_is_refused_by_name(tmp_path: Path) -> None:
    small = backend(small_model(tmp_path / "model"))
    write_tiny_model(tmp_path / "deep", 0, TinyShape(hidden=32, layers=2, heads=2, kv_heads=1, head_dim=16))
    with pytest.raises(RunRejected, match=r"holds the unknown tensor model\.layers\.1"):
        small.load_state(backend(tmp_path / "deep").state())


def copy_task(seed: int) -> list[MicroBatch]:
    """Four digits, then the same four digits as labels."""
    random = np.random.default_rng(seed)
    digits = random.integers(16, 26, (64, 4))
    tokens = torch.from_numpy(np.concatenate([digits, np.full((64, 1), 28), digits], axis=1)).flatten()
    mask = torch.tensor([False] * 5 + [True] * 4).repeat(64)
    attempt = torch.arange(64).repeat_interleave(9)
    lengths = torch.full((64,), 9)
    zeros = torch.zeros(len(tokens))
    batch = TrainingBatch(
        tokens, mask, zeros, zeros.int(), lengths, attempt, torch.zeros(64).double(), torch.arange(64)
    )
    return packed(batch, 4096)


def test_sft_learns_to_copy(tmp_path: Path) -> None:
    write_tiny_model(tmp_path / "model", 0, TinyShape(hidden=64, layers=2, intermediate=128))
    one = backend(tmp_path / "model", adamw=AdamW((0.9, 0.95), 1e-8, 0.0, 1.0))
    losses = [one.train_step(copy_task(step), sft_loss, 5e-3, step)["loss"] for step in range(150)]
    assert losses[0] > 5
    assert losses[-1] < 0.5, losses[::10]
