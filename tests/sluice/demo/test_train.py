"""Which runs a demo makes of its recipe, in which order and from which models."""

from pathlib import Path
from typing import Any

import pytest

from shared.errors import SluiceError
from shared.rest_examples import EVALUATION, RUN
from shared.settings import Tree
from sluice.answers import Run, Step
from sluice.client import Client
from sluice.demo.recipe import DemoAlgorithm, make_recipe
from sluice.demo.train import Clock, DemoRuns, Outcome

ACCURACY = {"demo-before": 0.1, "demo-after": 0.9}


class PlayedClient(Client):
    """A deployment in which every run has ended as soon as it is started."""

    def __init__(self, fails: str = "") -> None:
        self.pushed: list[str] = []
        self.started: dict[str, Tree] = {}
        self._fails = fails

    def push_dataset(self, name: str, file: Path, *_: Any, **__: str) -> Any:
        self.pushed.append(name)

    def start_run(self, settings: dict[str, Any]) -> Run:
        self.started[settings["name"]] = settings
        return self.run(settings["name"])

    def run(self, run: str) -> Run:
        tree = self.started[run]
        steps, datasets = tree["trainer"]["steps"], tree.get("eval", {}).get("datasets", [])
        evaluations = [
            {**EVALUATION, "dataset": name, "version": version, "reward_mean": ACCURACY.get(run, 0.5)}
            for version in sorted({0, steps})
            for name in datasets
        ]
        ended = {"state": "failed" if run == self._fails else "finished", "reason": "it was played"}
        kind = tree.get("kind", "rl")
        return Run.model_validate(
            {**RUN, "run": run, "kind": kind, "steps": steps, "evaluations": evaluations, **ended}
        )

    def steps(self, run: str, after: int = 0, limit: int = 1000) -> list[Step]:
        return [Step(step=n, weight_version=n, metrics={}) for n in (1, 2) if n > after]


def train(client: PlayedClient, algorithm: DemoAlgorithm) -> tuple[Outcome, Clock]:
    clock = Clock()
    runs = DemoRuns(client, Path("/runs"), make_recipe(algorithm, 0, []), clock, as_json=True)
    return runs.train(Path("/model"), {"pairs": Path("pairs.jsonl"), "sums": Path("sums.jsonl")}), clock


def models(client: PlayedClient) -> dict[str, str]:
    return {name: tree["model"]["path"] for name, tree in client.started.items()}


@pytest.mark.parametrize(
    ("algorithm", "name"), [(DemoAlgorithm.DPO, "demo-dpo"), (DemoAlgorithm.SFT, "demo-worked-sft")]
)
def test_a_run_without_engines_has_its_models_measured_before_and_after(algorithm: DemoAlgorithm, name: str) -> None:
    client = PlayedClient()
    outcome, clock = train(client, algorithm)
    assert client.pushed == ["pairs", "sums"]
    assert list(models(client).items()) == [
        ("demo-sft", "/model"),
        ("demo-before", "/runs/demo-sft/export"),
        (name, "/runs/demo-sft/export"),
        ("demo-after", f"/runs/{name}/export"),
    ]
    assert (outcome.run.run, len(outcome.steps)) == (name, 2)
    assert {v: e.reward_mean for v, e in outcome.held_out.items()} == {0: 0.1, outcome.run.steps: 0.9}
    assert set(clock.seconds) == {"sft", "evaluate", "rl"}


def test_a_run_with_engines_measures_itself() -> None:
    client = PlayedClient()
    outcome, clock = train(client, DemoAlgorithm.GRPO)
    assert models(client) == {"demo-sft": "/model", "demo-grpo": "/runs/demo-sft/export"}
    assert {v: e.reward_mean for v, e in outcome.held_out.items()} == {0: 0.5, 80: 0.5}
    assert set(clock.seconds) == {"sft", "rl"}


def test_a_student_learns_from_what_more_sft_makes() -> None:
    client = PlayedClient()
    train(client, DemoAlgorithm.DISTILL)
    assert list(client.started) == ["demo-sft", "demo-teacher", "demo-distill"]
    assert client.started["demo-distill"]["trainer"]["distillation"]["teacher"] == "/runs/demo-teacher/export"


def test_a_run_that_fails_ends_the_demo_with_its_reason() -> None:
    with pytest.raises(SluiceError, match="run demo-before failed: it was played"):
        train(PlayedClient(fails="demo-before"), DemoAlgorithm.DPO)
