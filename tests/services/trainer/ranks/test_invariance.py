"""One step, cut in many ways -> the same loss, gradients and weights, for every loss and everything that changes it."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import get_args

import pytest
import torch

from services.trainer.backend import State
from services.trainer.backends.shard_model import whole
from services.trainer.learner import Learner
from services.trainer.losses.token_weights import Aggregation
from services.trainer.open_learner import open_learner
from services.trainer.ranks import Ranks
from shared import check_trainer
from shared.run_settings import RunSettings
from tests.services.trainer.ranks.invariant_cases import CASES, Case
from tests.services.trainer.ranks.spawned_ranks import SpawnedRanks
from tests.services.trainer.ranks.uneven_steps import KINDS, UnevenStep, models, uneven_steps

DEADLINE_S = 240
TOLERANCE = 1e-5
"""Relative, by the norm of each tensor."""


@dataclass(frozen=True, slots=True)
class Cut:
    """A way to train a step."""

    ranks: int
    max_tokens: int
    turned: bool = False

    def __str__(self) -> str:
        order = ", in the opposite order" if self.turned else ""
        return f"{self.ranks} ranks, {self.max_tokens} tokens a micro-batch{order}"


WHOLE = Cut(1, 4096)
CUTS = (WHOLE, Cut(1, 24), Cut(1, 60, True), Cut(2, 48, True), Cut(4, 64))
Tensors = dict[str, torch.Tensor]
Outcome = tuple[list[dict[str, float]], Tensors]
"""Metrics by step, and tensors by name: moments after the first step, all state after the last."""


def train_all(
    cuts: list[Cut], folders: dict[str, Path], steps: dict[str, list[UnevenStep]], ranks: Ranks, device: str = "cpu"
) -> dict[str, dict[str, Outcome]]:
    """On every rank: case -> cut -> outcome, on rank 0."""

    def outcome(case: Case, cut: Cut) -> Outcome:
        settings = case.settings(folders, cut.max_tokens)
        learner = open_learner(settings, torch.device(device), ranks)
        return _train(learner, settings, steps[case.kind], cut, ranks)

    return {name: {str(cut): outcome(case, cut) for cut in cuts} for name, case in CASES.items()}


def _train(learner: Learner, settings: RunSettings, steps: list[UnevenStep], cut: Cut, ranks: Ranks) -> Outcome:
    metrics: list[dict[str, float]] = []
    tensors: Tensors = {}
    for step in steps:
        measured = step.train(learner, settings, ranks, cut.turned)
        metrics.append({name: value for name, value in measured.items() if "seconds" not in name})
        tensors |= gathered(f"step {step.intent.step}", learner.state())
    return metrics, {} if ranks.rank else tensors


def gathered(when: str, state: State) -> Tensors:
    named = {f"{when}: {part}/{name}": tensor for part, tensors in state.items() for name, tensor in tensors.items()}
    return {name: whole(tensor).cpu().clone() for name, tensor in named.items() if "random/" not in name}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, dict[str, Outcome]]]:
    """Case -> cut -> outcome; ranks of all sizes at once, so that those that wait leave the others the processor."""
    folder = tmp_path_factory.mktemp("invariance")
    folders = models(folder)
    steps = {kind: uneven_steps(folders["policy"], kind) for kind in KINDS}
    worlds = {
        size: SpawnedRanks(
            size,
            partial(train_all, [cut for cut in CUTS if cut.ranks == size], folders, steps),
            folder / f"ranks_{size}",
        )
        for size in sorted({cut.ranks for cut in CUTS})
    }
    until = time.monotonic() + DEADLINE_S
    try:
        found = [world.results(until - time.monotonic())[0] for world in worlds.values()]
    finally:
        for world in worlds.values():
            world.end()
    yield {name: {cut: made for one in found for cut, made in one[name].items()} for name in CASES}


@pytest.mark.parametrize("cut", [cut for cut in CUTS if cut != WHOLE], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_a_step_does_not_depend_on_its_cut(outcomes: dict[str, dict[str, Outcome]], name: str, cut: Cut) -> None:
    (metrics, tensors), (expected_metrics, expected) = outcomes[name][str(cut)], outcomes[name][str(WHOLE)]
    assert tensors.keys() == expected.keys()
    differences = {key: difference(tensors[key], expected[key]) for key in expected}
    assert max(differences.values()) < TOLERANCE, sorted(differences.items(), key=lambda item: -item[1])[:5]
    for found, wanted in zip(metrics, expected_metrics, strict=True):
        assert found == pytest.approx(wanted, rel=TOLERANCE, abs=TOLERANCE)


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Norm of the difference, relative to the norm of what is expected."""
    distance = float((found.double() - expected.double()).norm())
    return distance / max(float(expected.double().norm()), 1e-30) if distance else 0.0


@pytest.mark.parametrize("name", CASES)
def test_every_case_learns_and_does_what_it_is_about(outcomes: dict[str, dict[str, Outcome]], name: str) -> None:
    metrics, tensors = outcomes[name][str(WHOLE)]
    assert metrics[0]["grad_norm"] > 0
    assert metrics[0][CASES[name].shows] != 0
    moved = {key for key in tensors if key.startswith("step 2: weights/")}
    assert any(not torch.equal(tensors[key], tensors[key.replace("step 2", "step 1")]) for key in moved)


def test_no_loss_and_no_aggregation_is_without_a_case() -> None:
    given = [
        case.settings({name: Path("m") for name in ("policy", "reference", "teacher", "critic")}, 1)
        for case in CASES.values()
    ]
    rl = [settings.trainer for settings in given if settings.kind == "rl"]
    assert {(t.loss.type, t.loss.aggregation) for t in rl} >= {
        (loss, aggregation) for loss in check_trainer.LOSSES for aggregation in get_args(Aggregation)
    }
    assert {t.advantage.estimator for t in rl} == set(check_trainer.ESTIMATORS)
    assert {settings.kind for settings in given} == set(KINDS)
