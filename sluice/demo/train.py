"""A recipe, a model and rows -> the demo's runs, one after the other, and what their models answer."""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shared.errors import SluiceError
from shared.settings import merge
from sluice.answers import Evaluation, Run, Step
from sluice.cli.output import note
from sluice.cli.watch import follow_start, follow_to_end
from sluice.client import Client
from sluice.demo.recipe import Recipe
from sluice.demo.rows import HELD_OUT


@dataclass(slots=True)
class Clock:
    """Seconds by phase."""

    seconds: dict[str, float] = field(default_factory=dict[str, float])
    _begun: float = field(default_factory=time.monotonic)

    def lap(self, phase: str) -> None:
        """What has passed since the last lap belongs to this phase."""
        now = time.monotonic()
        self.seconds[phase] = round(self.seconds.get(phase, 0.0) + now - self._begun, 1)
        self._begun = now


@dataclass(frozen=True, slots=True)
class Outcome:
    """The last run, and what its model answered before and after it."""

    run: Run
    steps: list[Step]
    held_out: dict[int, Evaluation]
    """By weight version of that run."""


@dataclass(frozen=True, slots=True)
class DemoRuns:
    """The runs of one recipe on a deployment that is up."""

    client: Client
    exports: Path
    """Where runs leave their models."""
    recipe: Recipe
    clock: Clock
    as_json: bool

    def train(self, model: Path, files: dict[str, Path]) -> Outcome:
        """All runs; SluiceError if one does not come to its end."""
        for name, file in files.items():
            self.client.push_dataset(name, file)
        note("[bold]3/5[/] SFT: learn from demonstrations: most leave the thinking empty, some add the columns in it")
        sft = self._run(merge(self.recipe.sft, {"model": {"path": str(model.absolute())}}))
        start = self._model_of(sft)
        self.clock.lap("sft")
        teacher = self._teacher(start)
        before = self._measure("demo-before", start, "the model after SFT")
        note(f"[bold]4/5[/] {self.recipe.algorithm.written}: {self.recipe.algorithm.purpose}")
        run = self._run(self.recipe.last(start, teacher))
        self.clock.lap("rl")
        after = self._measure("demo-after", self._model_of(run), "the trained model")
        measured = {version: found for version, found in ((0, before), (run.steps, after)) if found is not None}
        by_itself = {one.version: one for one in run.evaluations if one.dataset == HELD_OUT and one.complete}
        return Outcome(run, self.client.steps(run.run, limit=10_000), measured or by_itself)

    def _teacher(self, start: str) -> str | None:
        """The folder of the model that distillation learns from; None for other algorithms."""
        if self.recipe.teacher is None:
            return None
        note("      SFT of the teacher: from there, on demonstrations that all add the columns")
        taught = self._run(merge(self.recipe.teacher, {"model": {"path": start}}))
        self.clock.lap("teacher")
        return self._model_of(taught)

    def _measure(self, name: str, model: str, whose: str) -> Evaluation | None:
        """What the engines make of the held-out rows with a model; None where the last run asks them itself."""
        if self.recipe.measuring is None:
            return None
        note(f"      held-out rows, answered by {whose}: a run of no steps, for the kind that trains has no engines")
        (found,) = self._run(self.recipe.measure(name, model)).evaluations
        self.clock.lap("evaluate")
        return found

    def _run(self, tree: dict[str, Any]) -> Run:
        name = self.client.start_run(tree).run
        follow_start(self.client, name)
        run = follow_to_end(self.client, name, self.as_json)
        if run.state != "finished":
            raise SluiceError(f"run {name} ended as {run.state}: {run.reason}")
        return run

    def _model_of(self, run: Run) -> str:
        return str(self.exports / run.run / "export")
