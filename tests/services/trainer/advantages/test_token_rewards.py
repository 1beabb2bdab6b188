"""Where a sample's reward and the KL penalty land."""

import torch

from services.trainer.advantages.token_rewards import kl_penalty, token_rewards
from tests.services.trainer.ragged import ragged


def test_the_reward_lands_on_the_last_trained_token_on_top_of_its_penalty() -> None:
    batch = ragged(5)
    kl = batch.column(1)
    expected = [-0.3 * kl[t].item() if batch.mask[t] else 0.0 for t in range(len(kl))]
    for row, trained in batch.rows():
        if trained:
            expected[trained[-1]] += batch.samples.reward[row].item()
    penalty = kl_penalty(kl, batch.mask, 0.3)
    assert token_rewards(batch.samples.reward, penalty, batch.mask, batch.sample).tolist() == expected


def test_a_masked_last_token_gets_nothing_and_a_masked_sample_has_nothing_to_give() -> None:
    mask = torch.tensor([False, True, False, False, False])
    sample = torch.tensor([0, 0, 0, 1, 1])
    rewards = token_rewards(torch.tensor([5.0, 7.0]), torch.zeros(5), mask, sample)
    assert rewards.tolist() == [0.0, 5.0, 0.0, 0.0, 0.0]
