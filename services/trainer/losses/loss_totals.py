"""The losses of a step's micro-batches, one by one -> the step's loss and the metrics of its trained tokens."""

import torch

from services.trainer.losses.token_loss import TokenLoss, Values
from services.trainer.ranks import Ranks


class LossTotals:
    """Sums and maxima; they stay on the device until the step is done, so that nothing waits for a copy."""

    def __init__(self) -> None:
        self._tokens = 0
        self._sums = Values()
        self._maxima = Values()

    def add(self, part: TokenLoss, tokens: int) -> None:
        """Take in one micro-batch with this many trained tokens."""
        self._tokens += tokens
        for name, value in {**part.sums, "loss": part.loss.detach()}.items():
            self._sums[name] = self._sums[name] + value.double() if name in self._sums else value.double()
        for name, value in part.maxima.items():
            self._maxima[name] = torch.maximum(self._maxima[name], value) if name in self._maxima else value

    def metrics(self, ranks: Ranks) -> dict[str, float]:
        """`loss` as it is, means over the trained tokens of all ranks, and maxima; every rank must have a part."""
        tokens = float(ranks.sum(torch.tensor(float(self._tokens), dtype=torch.float64)))
        sums = ranks.sum(torch.stack([value.double() for _, value in sorted(self._sums.items())]))
        means = sums / torch.tensor([1.0 if name == "loss" else max(tokens, 1.0) for name in sorted(self._sums)]).to(sums)
        found = dict(zip(sorted(self._sums), means.tolist(), strict=True))
        if self._maxima:
            maxima = ranks.maximum(torch.stack([value.double() for _, value in sorted(self._maxima.items())]))
            found |= dict(zip(sorted(self._maxima), maxima.tolist(), strict=True))
        return found
