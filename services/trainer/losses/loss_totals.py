"""The losses of a step's micro-batches, one by one -> the step's loss and the metrics of its trained tokens."""

import torch

from services.trainer.losses.token_loss import TokenLoss, Values


class LossTotals:
    """Sums and maxima; they stay on the device until the step is done, so that nothing waits for a copy."""

    def __init__(self) -> None:
        self._tokens = 0
        self._sums = Values()
        self._totals = Values()
        self._maxima = Values()

    def add(self, part: TokenLoss, tokens: int) -> None:
        """Take in one micro-batch with this many trained tokens."""
        self._tokens += tokens
        for name, value in part.sums.items():
            self._sums[name] = self._sums[name] + value.double() if name in self._sums else value.double()
        for name, value in {**part.totals, "loss": part.loss.detach()}.items():
            self._totals[name] = self._totals[name] + value.double() if name in self._totals else value.double()
        for name, value in part.maxima.items():
            self._maxima[name] = torch.maximum(self._maxima[name], value) if name in self._maxima else value

    def metrics(self) -> dict[str, float]:
        """The loss and the totals as they are, means over the trained tokens, and maxima."""
        means = {name: float(value) / max(self._tokens, 1) for name, value in self._sums.items()}
        whole = {name: float(value) for name, value in {**self._totals, **self._maxima}.items()}
        return {"loss": 0.0, **means, **whole}
