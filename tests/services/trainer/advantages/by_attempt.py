"""A step's rewards, attempt by attempt in plain numbers: what the estimators are compared with."""

import numpy as np

from services.trainer.advantages.samples import Samples


def others_of(samples: Samples, row: int) -> tuple[float, list[float]]:
    """The mean reward of a sample's attempt, and those of all attempts of its group, its own among them."""
    reward, group, attempt = samples.reward.tolist(), samples.group.tolist(), samples.attempt.tolist()
    members = sorted({attempt[i] for i in range(len(reward)) if group[i] == group[row]})
    means = {a: float(np.mean([reward[i] for i in range(len(reward)) if attempt[i] == a])) for a in members}
    return means[attempt[row]], list(means.values())
