"""Rewards of samples and the divergence from a reference -> a reward for each trained token."""

import torch


def kl_penalty(kl: torch.Tensor, mask: torch.Tensor, kl_coef: float) -> torch.Tensor:
    """-kl_coef * kl_t at trained tokens, 0 elsewhere; [tokens] float64.

    Args:
        kl: [tokens] estimate of the divergence from the reference at each token, in nats.
        mask: [tokens] bool, True where the token is trained.
    """
    return torch.where(mask, -kl_coef * kl.double(), 0.0)


def token_rewards(
    reward: torch.Tensor, penalty: torch.Tensor, mask: torch.Tensor, sample: torch.Tensor
) -> torch.Tensor:
    """The penalty of each token, and on the last trained token of a sample its whole reward; [tokens] float64.

    Source: Ouyang et al. 2022 (InstructGPT), section 3.5, with the divergence taken token by token. A last token that
    is masked, such as the output of a tool, gets nothing; a sample without a trained token has no token to give it to.

    Args:
        reward: [samples].
        penalty: [tokens], as from `kl_penalty`; zeros where there is none.
        mask: [tokens] bool, True where the token is trained.
        sample: [tokens] int64, which row of `reward` the token belongs to; the tokens of a sample stand together.
    """
    trained = torch.nonzero(mask).flatten()
    owner = sample[trained]
    is_last = torch.ones_like(owner, dtype=torch.bool)
    is_last[:-1] = owner[1:] != owner[:-1]
    rewards = penalty.double().clone()
    rewards[trained[is_last]] += reward.double()[owner[is_last]]
    return rewards
