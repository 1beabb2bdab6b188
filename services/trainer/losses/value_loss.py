"""A critic's values and the returns that it should have told -> its clipped squared error."""

import torch

from services.trainer.losses.token_loss import Predictions, TokenLoss, TrainedTokens


def value_loss(predictions: Predictions, tokens: TrainedTokens, *, value_clip: float | None) -> TokenLoss:
    """sum_t w_t max((V - G)^2, (V_clip - G)^2) / 2, V_clip = V_old + clip(V - V_old, -value_clip, value_clip).

    Source: the value clipping of Schulman et al. 2017's code as written down in Engstrom et al. 2020 (Implementation
    matters in deep policy gradients), section 3. G is the return and V_old the value that the step started
    from; `value_clip` None takes the plain squared error.
    """
    values, returns, old = predictions.values, tokens.returns, tokens.old_values
    assert values is not None, "the critic's predictions hold its values"
    assert returns is not None, "a critic learns returns"
    assert old is not None, "values before the step bound the new ones"
    error = (values - returns).square()
    clipped = error
    if value_clip is not None:
        # bounds of the value, not of its move: a value that is not clipped stays the same to the last bit
        clipped = (values.clamp(old - value_clip, old + value_clip) - returns).square()
    loss = (torch.maximum(error, clipped) * tokens.weights).sum() / 2
    with torch.no_grad():
        sums = {
            "value_mean": values.sum(),
            "return_mean": returns.sum(),
            "value_error_mean_abs": (values - returns).abs().sum(),
            "value_clip_fraction": (clipped > error).float().sum(),
        }
    return TokenLoss(loss, sums)
