"""The metrics of a step -> nothing, an alarm in the run's events, or the end of the run with one sentence."""

from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from services.trainer.first_step import FirstStep, first_step_problems
from shared.errors import RunRejected
from shared.run_settings import RunSettings

NEWEST = "logprob_diff_staleness_0"
SKIPPED = ("step_skipped", "critic_step_skipped")
Metrics = Mapping[str, float]
Tell = Callable[[str, dict[str, object]], Awaitable[None]]
"""(event, detail) -> the run's events."""


@dataclass(frozen=True, slots=True)
class StepWatch:
    """What a run asserts of its steps while it trains. It speaks on rank 0, of metrics that are those of all ranks."""

    run: str
    nan_policy: Literal["skip", "stop"]
    first: FirstStep | None
    """What the run's first step is held against; None for nothing."""
    logprob_diff_alarm: float
    """Nats between trainer and engine beyond which a step raises an event; 0 for none."""
    tell: Tell

    def check(self, step: int, metrics: Metrics) -> None:
        """To be called before the step is committed; it says the same of a step that is trained again.

        Raises:
            RunRejected: a gradient was not finite and the run is to stop then, or the first step shows that the models
                do not agree that are the same.
        """
        if was_skipped(metrics) and self.nan_policy == "stop":
            raise RunRejected(
                f"a gradient of step {step} is not finite, and trainer.nan_policy is 'stop'; {self._go_on(step)} with a"
                ' lower trainer.learning_rate, or with nan_policy = "skip", which leaves such updates out'
            )
        problem = next(first_step_problems(self.first, metrics), None) if self._is_first(step) else None
        if problem:
            raise RunRejected(f"on step {step}, {problem}; {self._go_on(step)}")

    async def report(self, step: int, metrics: Metrics) -> None:
        """To be called once for a step, when it is committed."""
        if was_skipped(metrics):
            await self.tell("step_skipped", {"step": step, "loss": metrics.get("loss")})
        if self.logprob_diff_alarm:
            far = {name: value for name, value in _differences(metrics) if value > self.logprob_diff_alarm}
            if far.keys() & {"logprob_diff_mean_abs", NEWEST}:
                await self.tell("logprob_diff_alarm", {"step": step, "bound": self.logprob_diff_alarm, **far})

    def _is_first(self, step: int) -> bool:
        return self.first is not None and step == self.first.step

    def _go_on(self, step: int) -> str:
        """What a person does with a run that has ended before this step was committed."""
        return f"the step is recorded and not committed, so `sluice branch {self.run} --from {step - 1}` goes on"


def was_skipped(metrics: Metrics) -> bool:
    """Whether an update of the step, of policy or critic, was left out because its gradient was not finite."""
    return any(metrics.get(name) for name in SKIPPED)


def _differences(metrics: Metrics) -> Iterator[tuple[str, float]]:
    yield from ((name, value) for name, value in metrics.items() if name.startswith("logprob_diff_"))


def watch_of(run: str, settings: RunSettings, tell: Tell) -> StepWatch:
    """What the settings of a run ask to be watched."""
    trainer, branch = settings.trainer, settings.branch
    reference = Path(trainer.kl.reference or settings.model.path).expanduser()
    is_initial = (branch is None or branch.step == 0) and reference == Path(settings.model.path).expanduser()
    first = FirstStep(
        step=branch.step + 1 if branch else 1,
        dtype=settings.model.dtype,
        is_quantised=settings.weights.quantization != "none",
        is_reference=is_initial,
        old_policy=trainer.loss.old_policy,
        beta=trainer.dpo.beta,
    )
    watched = first if trainer.check_first_step and settings.kind != "sft" else None
    return StepWatch(run, trainer.nan_policy, watched, trainer.logprob_diff_alarm, tell)
