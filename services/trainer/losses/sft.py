"""Log-probabilities of label tokens -> their mean negative log-likelihood over the step."""

import torch

from services.trainer.losses.token_loss import TokenLoss, TrainedTokens


def sft_loss(logprobs: torch.Tensor, tokens: TrainedTokens) -> TokenLoss:
    """-sum_t w_t logprob_t: the cross-entropy of the labels (maximum likelihood), with w_t = 1 / label tokens."""
    return TokenLoss(-(logprobs * tokens.weights).sum())
