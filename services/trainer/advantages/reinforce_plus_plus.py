"""Token rewards -> discounted returns, the advantages of REINFORCE++ before they are whitened."""

import torch

from services.trainer.sequence_sums import discounted_sums


def reinforce_plus_plus(
    rewards: torch.Tensor, mask: torch.Tensor, sample: torch.Tensor, gamma: float = 1.0
) -> torch.Tensor:
    """A_t = sum over the trained tokens i >= t of its sample of gamma^(i - t) r_i; [tokens] float64, 0 elsewhere.

    Source: Hu et al. 2025 (REINFORCE++), section 3.1; t counts trained tokens only. `whiten` completes it.

    Args:
        rewards: [tokens], as from `token_rewards`.
        mask: [tokens] bool, True where the token is trained.
        sample: [tokens] int64; the tokens of a sample stand together.
    """
    advantages = torch.zeros(len(rewards), dtype=torch.float64, device=rewards.device)
    advantages[mask] = discounted_sums(rewards[mask].double(), sample[mask], gamma)
    return advantages
