"""Token rewards and a critic's values -> PPO's advantages, and the returns that the critic learns."""

import torch

from services.trainer.sequence_sums import discounted_sums


def gae(
    rewards: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, sample: torch.Tensor, gamma: float, lam: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """A_t = sum over i >= t of (gamma lam)^(i - t) delta_i with delta_i = r_i + gamma V_(i+1) - V_i, and A_t + V_t.

    Source: Schulman et al. 2016 (Generalized advantage estimation), equations 11, 12 and 16. Only trained tokens are
    states: the one that follows t is the next trained token of the sample, and after the last one the value is 0.

    Args:
        rewards: [tokens], as from `token_rewards`; the KL penalty in them is in the returns too.
        values: [tokens], read at trained tokens only.
        mask: [tokens] bool, True where the token is trained.
        sample: [tokens] int64; the tokens of a sample stand together.

    Returns:
        Advantages and returns, each [tokens] float64 and 0 where a token is not trained.
    """
    owner, value = sample[mask], values[mask].double()
    following = torch.zeros_like(value)
    following[:-1] = torch.where(owner[1:] == owner[:-1], value[1:], 0.0)
    found = discounted_sums(rewards[mask].double() + gamma * following - value, owner, gamma * lam)
    advantages = torch.zeros(len(rewards), dtype=torch.float64, device=rewards.device)
    returns = advantages.clone()
    advantages[mask], returns[mask] = found, found + value
    return advantages, returns
