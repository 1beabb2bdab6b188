"""A group id and a seed -> the lengths of its attempts: long-tailed, alike within a group, the same every time."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class LongTail:
    """Response lengths in tokens. Half of the spread is the prompt's, half the attempt's."""

    seed: int = 0
    shape: Literal["lognormal", "pareto"] = "lognormal"
    median: float = 600.0
    sigma: float = 0.85
    """Log-normal: standard deviation of the logarithm."""
    alpha: float = 1.5
    """Pareto: exponent of the tail; below 2 the variance is infinite but for `longest`."""
    longest: int = 8192

    def lengths(self, group_id: int, attempts: int) -> NDArray[np.int64]:
        random = np.random.default_rng((self.seed, group_id))
        spread = random.standard_normal() * np.sqrt(0.5) + random.standard_normal(attempts) * np.sqrt(0.5)
        factors = np.exp(self.sigma * spread) if self.shape == "lognormal" else self._pareto(random, spread)
        return np.clip(self.median * factors, 16, self.longest).astype(np.int64)

    def _pareto(self, random: np.random.Generator, spread: NDArray[np.float64]) -> NDArray[np.float64]:
        """A quarter of the groups has the heavy tail, all its attempts together; the others are near the median."""
        heavy = random.random() < 0.25
        return (1 + random.pareto(self.alpha, len(spread))) if heavy else np.exp(0.2 * spread)
