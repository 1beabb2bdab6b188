"""What becomes of the metrics of micro-batches."""

import torch

from services.trainer.losses.loss_totals import LossTotals
from services.trainer.losses.token_loss import TokenLoss
from services.trainer.ranks import OneRank


def test_sums_are_divided_by_tokens_and_totals_are_not() -> None:
    totals = LossTotals()
    for scale, tokens in ((1.0, 3), (2.0, 1), (0.0, 0)):
        value = torch.tensor(scale)
        totals.add(TokenLoss(value, {"ratio_mean": 4 * value}, {"largest": value}, {"accuracy": value / 4}), tokens)
    assert totals.metrics(OneRank()) == {"loss": 3.0, "ratio_mean": 3.0, "largest": 2.0, "accuracy": 0.75}
