"""Functions as users write them, right and wrong."""

import torch

from services.trainer.advantages.samples import Samples
from services.trainer.losses.token_loss import Predictions, TokenLoss, TrainedTokens


def plain_rewards(samples: Samples) -> torch.Tensor:
    return samples.reward


def one_too_few(samples: Samples) -> torch.Tensor:
    return samples.reward[1:]


def not_finite(samples: Samples) -> torch.Tensor:
    return samples.reward / 0


async def later(samples: Samples) -> torch.Tensor:
    return samples.reward


def reinforce(predictions: Predictions, tokens: TrainedTokens) -> TokenLoss:
    loss = -(predictions.logprobs * tokens.advantages * tokens.weights).sum()
    return TokenLoss(loss, {"logprob_mean": predictions.logprobs.detach().sum()})


def by_token(predictions: Predictions, tokens: TrainedTokens) -> TokenLoss:
    return TokenLoss(predictions.logprobs * tokens.weights)


def without_gradient(predictions: Predictions, tokens: TrainedTokens) -> TokenLoss:
    return TokenLoss(predictions.logprobs.detach().sum())
