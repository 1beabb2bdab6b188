"""Log-probabilities of chosen and rejected answers -> the loss of direct preference optimization."""

from typing import Literal

import torch
from torch.nn import functional

from services.trainer.losses.token_loss import Predictions, TokenLoss, TrainedTokens, Values, entropy_sum
from services.trainer.sequence_sums import sequence_sums

DpoType = Literal["dpo", "ipo"]


def dpo_loss(
    predictions: Predictions, tokens: TrainedTokens, *, beta: float, label_smoothing: float, kind: DpoType
) -> TokenLoss:
    """The mean over pairs of a loss of h = log(p_w / ref_w) - log(p_l / ref_l), p being the product over an answer.

    dpo: -(1 - e) log sigmoid(beta h) - e log sigmoid(-beta h), e the label smoothing (Rafailov et al. 2023, equation 7;
    with e, the share of labels that are wrong, Mitchell 2023, "A note on DPO with noisy preferences").
    ipo: (h - 1 / (2 beta))^2 (Azar et al. 2024, equation 17).
    A pair weighs as much as its tokens together, so weights by rollout give each pair 1 / pairs. A pair that has lost
    all tokens of one answer to the mask prefers nothing and weighs 0.
    """
    pair, reference = tokens.pair, tokens.reference_logprobs
    assert pair is not None, "a preference loss needs to know chosen and rejected answers"
    assert reference is not None, "a preference loss needs the reference's log-probabilities"
    order = torch.argsort(pair, stable=True)
    answer, weights = pair[order], tokens.weights[order]
    sign = 1 - 2 * (answer % 2)
    is_whole = (_count(sign > 0, answer) > 0) & (_count(sign < 0, answer) > 0)
    weights = torch.where(is_whole, weights, 0.0)
    log_ratio = (predictions.logprobs - reference)[order]
    gap = sequence_sums(sign * log_ratio, answer // 2)
    each = _preference(gap, beta, label_smoothing) if kind == "dpo" else (gap - 1 / (2 * beta)).square()
    metrics = _metrics(gap.detach(), sequence_sums(log_ratio.detach(), answer), sign, weights, beta)
    return TokenLoss((each * weights).sum(), entropy_sum(predictions), totals=metrics)


def _count(of_side: torch.Tensor, answer: torch.Tensor) -> torch.Tensor:
    """At each token, how many tokens of its pair are on a side."""
    return sequence_sums(of_side.float(), answer // 2)


def _preference(gap: torch.Tensor, beta: float, label_smoothing: float) -> torch.Tensor:
    right, wrong = functional.logsigmoid(beta * gap), functional.logsigmoid(-beta * gap)
    return -(1 - label_smoothing) * right - label_smoothing * wrong


def _metrics(
    gap: torch.Tensor, log_ratio: torch.Tensor, sign: torch.Tensor, weights: torch.Tensor, beta: float
) -> Values:
    """Means over pairs; the implicit reward of an answer is beta log(p / ref), Rafailov et al. 2023, equation 5."""
    chosen, rejected = weights * (sign > 0), weights * (sign < 0)
    # the tokens of both answers weigh 1 together, half of it each
    return {
        "preference_accuracy": ((gap > 0) * weights).sum(),
        "preference_margin": (beta * gap * weights).sum(),
        "chosen_reward": 2 * (beta * log_ratio * chosen).sum(),
        "rejected_reward": 2 * (beta * log_ratio * rejected).sum(),
    }
