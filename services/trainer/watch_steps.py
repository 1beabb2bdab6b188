"""The metrics of a step -> nothing, an alarm in the run's events, or the end of the run with one sentence."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from shared.errors import RunRejected

FIRST_STEP_BOUND = {"float32": 1e-3, "bfloat16": 0.1}
"""Nats by which engine and trainer may differ on average before a step has trained anything; by model.dtype."""
Tell = Callable[[str, dict[str, object]], Awaitable[None]]
"""(event, detail) -> the run's events."""


@dataclass(frozen=True, slots=True)
class StepWatch:
    """What a run asserts of its steps while it trains."""

    first_step_bound: float | None
    """For the mean of |trainer's - engine's log-probability| on step 1, where all weights are the same; None: off."""
    logprob_diff_alarm: float
    """The same of any later step, which staleness makes larger; an event, no more. 0: off."""
    stop_on_nan: bool
    tell: Tell

    async def check(self, step: int, metrics: Mapping[str, float]) -> None:
        """To be called before the step is committed.

        Raises:
            RunRejected: the gradient was not finite and the run is to stop then, or step 1 shows that engine and
                trainer do not compute the same model.
        """
        if metrics["step_skipped"]:
            await self._not_finite(step, metrics)
        difference = metrics.get("logprob_diff_mean_abs")
        if difference is None:
            return
        if step == 1 and self.first_step_bound is not None and difference > self.first_step_bound:
            raise RunRejected(
                f"on step 1, from the same weights, trainer and engine differ by {difference:.3g} nats a token on"
                f" average, and {self.first_step_bound:g} are expected at most: look whether the engine alters"
                " probabilities (a quantised model, engine.server_args), or write trainer.check_first_step = false"
            )
        if self.logprob_diff_alarm and difference > self.logprob_diff_alarm:
            detail: dict[str, object] = {"step": step, "logprob_diff_mean_abs": difference}
            await self.tell("logprob_diff_alarm", {**detail, "staleness_mean": metrics.get("staleness_mean", 0.0)})

    async def _not_finite(self, step: int, metrics: Mapping[str, float]) -> None:
        if self.stop_on_nan:
            raise RunRejected(
                f"the gradient of step {step} is not finite, and trainer.nan_policy is 'stop'; lower"
                ' trainer.learning_rate, or write nan_policy = "skip" to leave such steps out and count them'
            )
        await self.tell("step_skipped", {"step": step, "loss": metrics.get("loss")})
