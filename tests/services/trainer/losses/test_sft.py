"""The mean negative log-likelihood of labels."""

import numpy as np
import pytest

from services.trainer.losses.sft import sft_loss
from services.trainer.losses.token_loss import Predictions
from tests.services.trainer.losses.trained_columns import check_empty, gradient_of, nothing_predicted, random_tokens


def test_loss_and_gradient_are_weighted_by_token() -> None:
    logprobs, tokens = random_tokens(8)
    found, gradient = gradient_of(sft_loss, logprobs, tokens)
    assert found.loss.item() == pytest.approx(-np.dot(logprobs.numpy(), tokens.weights.numpy()))
    np.testing.assert_array_equal(gradient, -tokens.weights.numpy())
    assert not found.sums


def test_entropy_is_measured_where_it_is_known_and_a_micro_batch_without_tokens_adds_zero() -> None:
    logprobs, tokens = random_tokens(8)
    full = sft_loss(Predictions(logprobs, -logprobs), tokens)
    assert full.sums["entropy"].item() == pytest.approx(-logprobs.sum().item())
    check_empty(sft_loss, nothing_predicted(), full)
