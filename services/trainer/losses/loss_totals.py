"""The losses of a step's micro-batches, one by one -> the step's loss and the metrics of its trained tokens."""

from collections.abc import Callable

import torch

from services.trainer.losses.token_loss import TokenLoss, Values
from services.trainer.ranks import Ranks


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

    def trained_tokens(self, ranks: Ranks) -> int:
        """Of all ranks, each of which must ask."""
        return int(ranks.sum(torch.tensor(self._tokens)))

    def metrics(self, ranks: Ranks) -> dict[str, float]:
        """Of all ranks, each of which must have a part: loss and totals as they are, means over tokens, and maxima."""
        tokens = self.trained_tokens(ranks)
        means = {name: value / max(tokens, 1) for name, value in _combined(self._sums, ranks.sum).items()}
        totals, maxima = _combined(self._totals, ranks.sum), _combined(self._maxima, ranks.maximum)
        return {"loss": 0.0, **means, **totals, **maxima}


def _combined(values: Values, over_ranks: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, float]:
    if not values:
        return {}
    names = sorted(values)
    return dict(zip(names, over_ranks(torch.stack([values[name].double() for name in names])).tolist(), strict=True))
