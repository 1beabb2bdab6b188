"""A user's functions: what is taken, and what is refused with which sentence."""

import pytest
import torch

from services.trainer.losses.token_loss import Predictions
from services.trainer.own_functions import own_advantages, own_loss
from shared.errors import PluginError, RunRejected
from tests.services.trainer.losses.trained_columns import gradient_of, random_tokens
from tests.services.trainer.ragged import ragged

HERE = "tests.services.trainer.own_algorithm"


def test_advantages_and_loss_of_a_user_are_used_as_they_are() -> None:
    samples = ragged(1).samples
    assert torch.equal(own_advantages(f"{HERE}:plain_rewards")(samples), samples.reward)
    logprobs, tokens = random_tokens(1)
    found, gradient = gradient_of(own_loss(f"{HERE}:reinforce"), logprobs, tokens)
    assert gradient.tolist() == (-tokens.advantages * tokens.weights).tolist()
    assert found.sums["logprob_mean"].item() == logprobs.sum().item()


@pytest.mark.parametrize("name", ["reinforce", "later", "missing"])
def test_a_function_that_is_no_estimator_is_refused_at_the_start(name: str) -> None:
    with pytest.raises(PluginError, match=r"def advantages\(samples: Samples\)"):
        own_advantages(f"{HERE}:{name}")


def test_a_function_that_is_no_loss_is_refused_at_the_start() -> None:
    with pytest.raises(PluginError, match=r"def loss\(predictions: Predictions, tokens: TrainedTokens\)"):
        own_loss(f"{HERE}:plain_rewards")


@pytest.mark.parametrize(("name", "sentence"), [("one_too_few", "return a tensor of"), ("not_finite", "not finite")])
def test_advantages_of_the_wrong_shape_or_size_end_the_run(name: str, sentence: str) -> None:
    with pytest.raises(RunRejected, match=sentence):
        own_advantages(f"{HERE}:{name}")(ragged(1).samples)


@pytest.mark.parametrize(
    ("name", "sentence"), [("by_token", "with a loss of no dimensions"), ("without_gradient", "without a gradient")]
)
def test_a_loss_that_cannot_be_learned_from_ends_the_run(name: str, sentence: str) -> None:
    logprobs, tokens = random_tokens(1)
    with pytest.raises(RunRejected, match=sentence):
        own_loss(f"{HERE}:{name}")(Predictions(logprobs.requires_grad_()), tokens)
