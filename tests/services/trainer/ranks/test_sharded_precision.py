"""Gradients in bfloat16 of two ranks -> their sum in float32, like that of two micro-batches on one rank."""

from functools import partial
from pathlib import Path

import torch

from services.trainer.backends.shard_model import whole
from services.trainer.backends.torch_backend import AdamW, TorchBackend
from services.trainer.load_model import load_policy
from services.trainer.losses.sft import sft_loss
from services.trainer.losses.token_loss import TrainedTokens
from services.trainer.packing import MicroBatch, pack, with_columns
from services.trainer.ranks import Ranks
from services.trainer.training_batch import training_batch
from shared.messages import Rollout
from tests.services.trainer.ranks.spawned_ranks import SpawnedRanks
from tests.services.trainer.ranks.test_invariance import Tensors, difference
from tests.services.trainer.ranks.uneven_steps import models, uneven_steps

BETA = 0.9
UNCLIPPED = 1e9


def halves(rollouts: list[Rollout]) -> list[MicroBatch]:
    batch = training_batch(rollouts)
    mask, zeros = batch.loss_mask, torch.zeros(len(batch.loss_mask))
    columns = TrainedTokens(batch.behaviour_logprobs, zeros, mask / mask.sum(), zeros.int(), batch.sample)
    first = torch.arange(len(batch.lengths)) < len(batch.lengths) // 2
    return [one for chosen in (first, ~first) for one in with_columns(pack(batch, 10**6, chosen), columns)]


def gradients(folder: Path, rollouts: list[Rollout], dtype: torch.dtype, ranks: Ranks) -> Tensors:
    """Of both halves, each on a rank of its own where there are two; told by the first moments after one step."""
    model, adamw = load_policy(folder, False, 1.0, torch.device("cpu")), AdamW((BETA, 0.95), 1e-8, 0.0, UNCLIPPED)
    backend, parts = TorchBackend(model, dtype, adamw, folder, ranks), halves(rollouts)
    backend.train_step(parts if ranks.size == 1 else [parts[ranks.rank]], sft_loss, 1e-3, 0)
    moments = {name: tensor for name, tensor in backend.state()["optimizer"].items() if name.startswith("exp_avg/")}
    return {name: whole(tensor) / (1 - BETA) for name, tensor in moments.items()}


def test_gradients_are_summed_over_ranks_in_float32(tmp_path: Path) -> None:
    folder = models(tmp_path)["policy"]
    rollouts = uneven_steps(folder, "sft")[0].rollouts
    worlds = {
        (size, dtype): SpawnedRanks(size, partial(gradients, folder, rollouts, dtype), tmp_path / f"{size}_{dtype}")
        for size, dtype in ((1, torch.bfloat16), (2, torch.bfloat16), (1, torch.float32))
    }
    try:
        one, two, exact = (world.results(120)[0] for world in worlds.values())
    finally:
        for world in worlds.values():
            world.end()
    for name, gradient in one.items():
        assert gradient.dtype == two[name].dtype == torch.float32
        assert difference(two[name], gradient) < 1e-6, name
        assert difference(gradient, exact[name]) > 1e-4, f"{name} was not made in bfloat16"
