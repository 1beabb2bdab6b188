"""A frozen model says what the policy that it is a copy of says, in the policy's precision."""

from pathlib import Path

import torch

from services.trainer.backends.torch_backend import AdamW, TorchBackend
from services.trainer.frozen_model import FrozenModel
from services.trainer.load_model import load_policy
from services.trainer.ranks import OneRank
from tests.services.trainer.micro_batches import of_groups
from tests.services.trainer.recorded_groups import small_model


def test_a_reference_in_bfloat16_agrees_with_the_policy_to_the_bit(tmp_path: Path) -> None:
    folder, cpu = small_model(tmp_path / "model"), torch.device("cpu")
    frozen = FrozenModel(load_policy(folder, False, 1.0, cpu), torch.bfloat16, OneRank(), False)
    adamw = AdamW((0.9, 0.95), 1e-8, 0.0, 1.0)
    policy = TorchBackend(load_policy(folder, False, 1.0, cpu), torch.bfloat16, adamw, folder)
    packs = [part.packed for part in of_groups(range(4))]
    for ours, theirs in zip(policy.predict(packs), frozen.predict(packs), strict=True):
        assert torch.equal(ours.logprobs, theirs.logprobs)
