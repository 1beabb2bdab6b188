"""The metrics of a run's first step, for which several models are one and the same -> where they do not agree."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

FIRST_UPDATE = "first_update_"
"""Prefix of the metrics of the first of several updates, before which nothing has moved."""
OF_FIRST_UPDATE = ("ratio_deviation_max", "logprob_diff_mean_abs", "kl_reference", "chosen_reward", "rejected_reward")


@dataclass(frozen=True, slots=True)
class Bounds:
    """What numerics alone may make of a difference that is 0 on paper."""

    engine_nats: float
    """Mean |trainer's - engine's log-probability|; two programs with kernels of their own."""
    engine_ratio: float | None
    """Largest |ratio - 1| of a token between the two. None: in half precision rare tokens differ as they like."""
    own_ratio: float
    """The same between two forward passes of the trainer."""
    own_nats: float
    """Mean log-probability of policy minus reference, both by the trainer."""


BOUNDS = {"float32": Bounds(1e-3, 1e-2, 1e-3, 1e-4), "bfloat16": Bounds(0.1, None, 0.3, 1e-2)}
IN_FP8 = 0.3
"""`engine_nats` of an engine that serves fp8, which rounds weights and activations."""


@dataclass(frozen=True, slots=True)
class FirstStep:
    """Which models of a run are the same at its first step."""

    step: int
    dtype: Literal["float32", "bfloat16"]
    is_quantised: bool
    """What the engine serves."""
    is_reference: bool
    """The reference is the model that the step starts from."""
    old_policy: Literal["behaviour", "proximal"]
    """What the loss compares the policy with: all of it is the policy itself where no token is stale."""
    beta: float
    """Reward of a nat in a preference run."""


def first_step_problems(first: FirstStep | None, metrics: Mapping[str, float]) -> Iterator[str]:
    """A sentence for each, a number that is not finite included; what a loss does not measure is not looked at."""
    if first is None:
        return
    bounds = BOUNDS[first.dtype]
    bounds = replace(bounds, engine_nats=IN_FP8) if first.is_quantised else bounds
    found = {name: metrics.get(f"{FIRST_UPDATE}{name}", metrics.get(name)) for name in OF_FIRST_UPDATE}
    if metrics.get("staleness_max", 0) == 0:
        yield from _engine(found["logprob_diff_mean_abs"], bounds)
        yield from _ratio(found["ratio_deviation_max"], first, bounds)
    if first.is_reference:
        yield from _reference(found["kl_reference"], bounds)
        per_answer = first.beta * bounds.own_nats * metrics.get("response_length_mean", 1.0)
        for name in ("chosen_reward", "rejected_reward"):
            yield from _rewards(name, found[name], per_answer)


def _engine(difference: float | None, bounds: Bounds) -> Iterator[str]:
    if difference is not None and not difference <= bounds.engine_nats:
        yield (
            f"from the same weights, trainer and engine differ by {difference:.3g} nats a token on average, and at most"
            f" {bounds.engine_nats:g} are expected: see whether the engine alters probabilities (a quantised model,"
            " engine.server_args), or write trainer.check_first_step = false"
        )


def _ratio(deviation: float | None, first: FirstStep, bounds: Bounds) -> Iterator[str]:
    most = bounds.own_ratio if first.old_policy == "proximal" else bounds.engine_ratio
    if deviation is not None and most is not None and not deviation <= most:
        yield (
            f"before any training, a token's probability ratio to the {first.old_policy} policy is {deviation:.3g} away"
            f" from 1, and at most {most:g} is expected; look for what makes the same model answer differently"
            " (rewritten log-probabilities in a plugin, engine.server_args), or write trainer.check_first_step = false"
        )


def _reference(kl: float | None, bounds: Bounds) -> Iterator[str]:
    if kl is not None and not abs(kl) <= bounds.own_nats:
        yield (
            f"before any training, the policy is {kl:.3g} nats a token away from the reference, which is its own"
            f" initial model, and at most {bounds.own_nats:g} are expected; look whether the files in model.path have"
            " changed since the run began, or write trainer.check_first_step = false"
        )


def _rewards(name: str, reward: float | None, most: float) -> Iterator[str]:
    if reward is not None and not abs(reward) <= most:
        yield (
            f"before any training, {name} is {reward:.3g} and not 0 (at most {most:.2g}), though the reference is the"
            " policy's own initial model; look whether the files in model.path have changed since the run began, or"
            " write trainer.check_first_step = false"
        )
