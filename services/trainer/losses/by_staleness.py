"""How far trainer and engine are apart at each token -> the same by how many versions ago the token was sampled."""

from collections.abc import Mapping

import torch

from services.trainer.losses.token_loss import Values

PLACES = ("0", "1", "2", "3", "4_or_more")
"""Staleness in versions, as the names of metrics have it; every rank has all of them, as they are summed together."""
NAME = "logprob_diff_staleness_"
NATS, TOKENS = "staleness_nats_", "staleness_tokens_"


def nats_by_staleness(difference: torch.Tensor, staleness: torch.Tensor) -> Values:
    """Absolute differences [tokens] and their staleness [tokens] -> sums and counts, to be added up over a step."""
    place = staleness.clamp(0, len(PLACES) - 1).long()
    zeros = torch.zeros(len(PLACES), dtype=torch.float64, device=difference.device)
    nats, tokens = zeros.index_add(0, place, difference.double()), zeros.index_add(0, place, zeros.new_ones(len(place)))
    sums = {f"{NATS}{name}": value for name, value in zip(PLACES, nats.unbind(), strict=True)}
    return {**sums, **{f"{TOKENS}{name}": value for name, value in zip(PLACES, tokens.unbind(), strict=True)}}


def means_by_staleness(metrics: Mapping[str, float]) -> dict[str, float]:
    """The step's metrics with a mean in the place of each sum and count; none where no token was that stale."""
    means = {
        f"{NAME}{name}": metrics[f"{NATS}{name}"] / metrics[f"{TOKENS}{name}"]
        for name in PLACES
        if metrics.get(f"{TOKENS}{name}")
    }
    return {**{name: value for name, value in metrics.items() if not name.startswith((NATS, TOKENS))}, **means}
