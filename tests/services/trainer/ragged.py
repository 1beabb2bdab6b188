"""Random steps of uneven groups, attempts with siblings, and sequences of uneven length with masked tokens."""

from dataclasses import dataclass

import numpy as np
import torch

from services.trainer.advantages.samples import Samples


@dataclass(frozen=True, slots=True)
class Ragged:
    """Samples and the tokens of all of them, one sample after the other."""

    samples: Samples
    sample: torch.Tensor
    """[tokens] int64."""
    mask: torch.Tensor
    """[tokens] bool; some samples have no trained token."""

    def column(self, seed: int, scale: float = 1.0) -> torch.Tensor:
        """[tokens] float64 normal numbers."""
        return torch.from_numpy(np.random.default_rng(seed).normal(0, scale, len(self.sample)))

    def rows(self) -> list[tuple[int, list[int]]]:
        """Each sample with the places of its trained tokens."""
        places = torch.nonzero(self.mask).flatten().tolist()
        owners = self.sample.tolist()
        return [(row, [t for t in places if owners[t] == row]) for row in range(len(self.samples.reward))]


def ragged(seed: int, groups: int = 7, whole_rewards: bool = False) -> Ragged:
    """Groups of 1 to 6 attempts, attempts of 1 to 3 samples, samples of 1 to 20 tokens; rows in random order."""
    random = np.random.default_rng(seed)
    sizes = random.integers(1, 7, groups)
    group_of_attempt = np.repeat(np.arange(groups), sizes)
    siblings = np.where(random.random(len(group_of_attempt)) < 0.3, random.integers(1, 4, len(group_of_attempt)), 1)
    attempt = random.permutation(np.repeat(np.arange(len(group_of_attempt)), siblings))
    rewards = random.integers(0, 2, len(attempt)) if whole_rewards else random.normal(size=len(attempt))
    sample = np.repeat(np.arange(len(attempt)), random.integers(1, 21, len(attempt)))
    mask = (random.random(len(sample)) < 0.7) & ~(random.random(len(attempt)) < 0.15)[sample]
    group = group_of_attempt[attempt]
    samples = Samples(
        reward=torch.from_numpy(rewards.astype(float)),
        group=torch.from_numpy(group),
        attempt=torch.from_numpy(attempt),
        dataset=torch.from_numpy(group % 2),
        trained=torch.from_numpy(np.bincount(sample, weights=mask, minlength=len(attempt)).astype(np.int64)),
    )
    return Ragged(samples, torch.from_numpy(sample), torch.from_numpy(mask))


def rewards_of(rewards: list[float], group: list[int], attempt: list[int] | None = None) -> Samples:
    """A table by hand; every sample is an attempt of its own unless told otherwise."""
    count = len(rewards)
    own = list(range(count)) if attempt is None else attempt
    columns = (torch.tensor(column, dtype=torch.int64) for column in (group, own, [0] * count, [1] * count))
    return Samples(torch.tensor(rewards, dtype=torch.float64), *columns)
