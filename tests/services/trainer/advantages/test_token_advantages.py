"""How the parts of a plan are put together, over one rank and over several."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from services.trainer.advantages.group_baseline import group_baseline
from services.trainer.advantages.grpo import grpo
from services.trainer.advantages.token_advantages import AdvantagePlan, RankTokens
from tests.services.trainer.ragged import Ragged, ragged


def alone(sums: torch.Tensor) -> torch.Tensor:
    return sums


def tokens_of(batch: Ragged) -> RankTokens:
    policy, reference, teacher, values = (batch.column(seed, 0.3) for seed in range(4))
    return RankTokens(batch.sample, batch.mask, policy, reference, teacher, values)


def test_all_trained_tokens_of_a_sample_share_its_advantage_and_masked_ones_have_none() -> None:
    batch = ragged(1)
    found = AdvantagePlan(grpo).advantages(batch.samples, tokens_of(batch), alone)
    assert torch.equal(found.advantages, torch.where(batch.mask, grpo(batch.samples)[batch.sample], 0.0))
    assert found.returns is None
    assert found.sums == {}


def test_reinforce_plus_plus_with_baseline_is_charged_token_by_token_and_then_whitened() -> None:
    batch = ragged(2)
    tokens, mask = tokens_of(batch), batch.mask.numpy()
    plan = AdvantagePlan(group_baseline, kl_coef=0.5, whitening="step")
    assert tokens.policy is not None
    assert tokens.reference is not None
    charged = group_baseline(batch.samples)[batch.sample] - 0.5 * (tokens.policy - tokens.reference)
    own = charged.numpy()[mask]
    expected = np.zeros(len(mask))
    expected[mask] = (own - own.mean()) / np.sqrt(own.var(ddof=1) + 1e-8)
    found = plan.advantages(batch.samples, tokens, alone)
    np.testing.assert_allclose(found.advantages.numpy(), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("estimator", ["reinforce_plus_plus", "gae"])
def test_the_divergence_is_in_the_rewards_and_so_in_what_the_critic_learns(estimator: str) -> None:
    batch = ragged(3)
    tokens = tokens_of(batch)
    plan = AdvantagePlan(estimator, gamma=0.9, kl_coef=0.5)  # pyright: ignore[reportArgumentType]
    found = plan.advantages(batch.samples, tokens, alone)
    assert tokens.policy is not None
    assert tokens.reference is not None
    for row, trained in batch.rows():
        paid = {t: -0.5 * (tokens.policy[t] - tokens.reference[t]).item() for t in trained}
        if trained:
            paid[trained[-1]] += batch.samples.reward[row].item()
        following = 0.0
        for t in reversed(trained):
            following = paid[t] + 0.9 * following
            # with lambda 1 the critic cancels out: returns are the discounted rewards, advantages those minus V
            returns = found.advantages if found.returns is None else found.returns
            assert returns[t].item() == pytest.approx(following, abs=1e-10)


def test_a_teacher_pulls_before_advantages_are_whitened() -> None:
    batch = ragged(4)
    tokens = tokens_of(batch)
    plain = AdvantagePlan(grpo, distillation_coef=2.0)
    pulled = plain.advantages(batch.samples, tokens, alone)
    assert tokens.policy is not None
    assert tokens.teacher is not None
    gap = tokens.policy - tokens.teacher
    expected = torch.where(batch.mask, grpo(batch.samples)[batch.sample] - 2 * gap, 0.0)
    torch.testing.assert_close(pulled.advantages, expected)
    assert pulled.sums["teacher_kl"].item() == pytest.approx(gap[batch.mask].sum().item())
    whitened = replace(plain, whitening="step").advantages(batch.samples, tokens, alone).advantages[batch.mask]
    assert whitened.mean().item() == pytest.approx(0, abs=1e-12)


def test_datasets_are_whitened_each_by_itself_also_where_a_rank_has_one_of_them() -> None:
    batch = ragged(5)
    plan = AdvantagePlan(grpo, whitening="dataset")
    whole = plan.advantages(batch.samples, tokens_of(batch), alone).advantages
    dataset = batch.samples.dataset[batch.sample]
    for one in (0, 1):
        own = whole[batch.mask & (dataset == one)]
        assert own.mean().item() == pytest.approx(0, abs=1e-12)
        share = dataset == one
        tokens = RankTokens(batch.sample[share], batch.mask[share])
        # the other rank has the other dataset only, so its sums of this one are 0
        torch.testing.assert_close(plan.advantages(batch.samples, tokens, alone).advantages, whole[share])


def test_a_rank_without_tokens_takes_part() -> None:
    batch = ragged(6)
    nothing = torch.zeros(0)
    tokens = RankTokens(nothing.long(), nothing.bool(), nothing, nothing, nothing, nothing)
    for estimator in (grpo, "reinforce_plus_plus", "gae"):
        plan = AdvantagePlan(estimator, kl_coef=0.1, distillation_coef=1.0, whitening="dataset")  # pyright: ignore
        asked: list[torch.Tensor] = []
        found = plan.advantages(batch.samples, tokens, lambda sums, asked=asked: asked.append(sums) or sums)
        assert len(found.advantages) == 0
        assert len(asked) == 2
