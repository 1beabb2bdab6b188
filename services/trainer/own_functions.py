"""A user's `module:function` for advantages or the loss -> the function, what it returns checked at every call."""

import torch

from services.trainer.advantages.samples import Samples
from services.trainer.advantages.token_advantages import ScalarEstimator
from services.trainer.losses.token_loss import LossFunction, Predictions, TokenLoss, TrainedTokens
from shared.errors import RunRejected
from shared.plugins import load_function

ADVANTAGES = "def advantages(samples: Samples) -> torch.Tensor"
LOSS = "def loss(predictions: Predictions, tokens: TrainedTokens) -> TokenLoss"


def own_advantages(path: str) -> ScalarEstimator:
    """PluginError if it does not load; RunRejected, when called, if it does not give each sample a finite number."""
    function = load_function(path, ("samples",), ADVANTAGES, is_async=False)

    def advantages(samples: Samples) -> torch.Tensor:
        found = function(samples)
        count = len(samples.reward)
        if not isinstance(found, torch.Tensor) or found.shape != (count,):
            raise RunRejected(f"{path} returned {_shape(found)} for {count} samples; return a tensor of [{count}]")
        if not bool(found.isfinite().all()):
            raise RunRejected(f"{path} returned advantages that are not finite; return a number for each sample")
        return found.double()

    return advantages


def own_loss(path: str) -> LossFunction:
    """PluginError if it does not load; RunRejected, when called, if nothing can be learned from what it returns."""
    function = load_function(path, ("predictions", "tokens"), LOSS, is_async=False)

    def loss(predictions: Predictions, tokens: TrainedTokens) -> TokenLoss:
        found = function(predictions, tokens)
        if not isinstance(found, TokenLoss) or found.loss.ndim:
            raise RunRejected(f"{path} returned {_shape(found)}; return TokenLoss with a loss of no dimensions")
        if torch.is_grad_enabled() and not found.loss.requires_grad:
            raise RunRejected(
                f"{path} returned a loss without a gradient; make it of predictions, also where there are no tokens,"
                " such as (values * tokens.weights).sum()"
            )
        return found

    return loss


def _shape(found: object) -> str:
    if isinstance(found, TokenLoss):
        return f"a loss of {list(found.loss.shape)}"
    return f"a tensor of {list(found.shape)}" if isinstance(found, torch.Tensor) else f"a {type(found).__name__}"
