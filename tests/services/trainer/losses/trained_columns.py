"""Random columns of trained tokens in float64, and numpy's way to a gradient."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from services.trainer.losses.token_loss import LossFunction, Predictions, TokenLoss, TrainedTokens
from tests.services.trainer.ragged import ragged


def random_tokens(seed: int, drift: float = 0.3) -> tuple[torch.Tensor, TrainedTokens]:
    """Log-probabilities under the policy that learns, and columns with all of its neighbours `drift` away."""
    batch = ragged(seed)
    sample = batch.sample[batch.mask]
    random = np.random.default_rng(seed + 1000)

    def near(logprobs: np.ndarray) -> np.ndarray:
        return logprobs + random.normal(0, drift, len(logprobs))

    behaviour = -random.exponential(size=len(sample)) - 1
    proximal, reference, logprobs = near(behaviour), near(behaviour), near(behaviour)
    values = random.normal(size=(2, len(sample)))
    tokens = TrainedTokens(
        behaviour_logprobs=torch.from_numpy(behaviour),
        advantages=torch.from_numpy(random.normal(size=len(sample))),
        weights=torch.from_numpy(random.random(len(sample))),
        staleness=torch.from_numpy(random.integers(0, 5, len(sample)).astype(np.int32)),
        sample=sample,
        proximal_logprobs=torch.from_numpy(proximal),
        reference_logprobs=torch.from_numpy(reference),
        returns=torch.from_numpy(values[0]),
        old_values=torch.from_numpy(values[1]),
    )
    return torch.from_numpy(logprobs), tokens


def no_tokens() -> TrainedTokens:
    """The columns of a micro-batch of a rank that has less to do than others."""
    nothing, integers = torch.zeros(0), torch.zeros(0, dtype=torch.int64)
    tokens = TrainedTokens(nothing, nothing, nothing, integers.int(), integers)
    return replace(tokens, reference_logprobs=nothing, returns=nothing, old_values=nothing, pair=integers)


def gradient_of(loss: LossFunction, logprobs: torch.Tensor, tokens: TrainedTokens) -> tuple[TokenLoss, np.ndarray]:
    """The loss of a micro-batch, and its gradient with respect to the log-probabilities."""
    inputs = logprobs.clone().requires_grad_()
    found = loss(Predictions(inputs), tokens)
    (gradient,) = torch.autograd.grad(found.loss, inputs)
    return found, gradient.numpy()


def differences(function: Callable[[np.ndarray], float], at: np.ndarray, step: float = 1e-6) -> np.ndarray:
    """Central differences of a function of [n] numbers."""
    slopes = np.zeros_like(at)
    for index in range(len(at)):
        moved = np.zeros_like(at)
        moved[index] = step
        slopes[index] = (function(at + moved) - function(at - moved)) / (2 * step)
    return slopes


def check_empty(loss: LossFunction, predictions: Predictions, full: TokenLoss) -> None:
    """A micro-batch without a trained token gives 0 that still hangs on the predictions, and the same metrics."""
    found = loss(predictions, no_tokens())
    assert found.loss.item() == 0
    assert found.loss.requires_grad
    found.loss.backward()
    assert found.sums.keys() == full.sums.keys()
    assert found.maxima.keys() == full.maxima.keys()
    assert found.totals.keys() == full.totals.keys()
    assert {value.item() for part in (found.sums, found.maxima, found.totals) for value in part.values()} <= {0}


def nothing_predicted() -> Predictions:
    """Of no token, with a graph behind it."""
    empty = torch.zeros(3, requires_grad=True)[:0]
    return Predictions(empty * 1, empty * 2, empty * 3)
