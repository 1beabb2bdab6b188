"""Log-probabilities of label tokens -> their mean negative log-likelihood over the step."""

from services.trainer.losses.token_loss import Predictions, TokenLoss, TrainedTokens, entropy_sum


def sft_loss(predictions: Predictions, tokens: TrainedTokens) -> TokenLoss:
    """-sum_t w_t logprob_t: the cross-entropy of the labels (maximum likelihood), with w_t = 1 / label tokens."""
    return TokenLoss(-(predictions.logprobs * tokens.weights).sum(), entropy_sum(predictions))
