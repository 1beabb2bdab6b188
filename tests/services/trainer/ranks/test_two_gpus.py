"""Two ranks on two GPUs, over NCCL -> what one rank on one GPU trains, for every loss."""

from functools import partial

import pytest
import torch

from tests.services.trainer.ranks.invariant_cases import CASES
from tests.services.trainer.ranks.spawned_ranks import SpawnedRanks
from tests.services.trainer.ranks.test_invariance import Cut, Outcome, difference, train_all
from tests.services.trainer.ranks.uneven_steps import KINDS, models, uneven_steps

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there are no two GPUs"),
]
TOLERANCE = 1e-4
"""Relative; kernels of a GPU add up in another order for other shapes."""
ONE, TWO = Cut(1, 4096), Cut(2, 48, turned=True)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Outcome]]:
    """Case -> cut -> outcome."""
    folder = tmp_path_factory.mktemp("two_gpus")
    folders = models(folder)
    steps = {kind: uneven_steps(folders["policy"], kind) for kind in KINDS}
    found = [
        SpawnedRanks(
            cut.ranks, partial(train_all, [cut], folders, steps, device="cuda"), folder / str(cut.ranks), on_gpus=True
        ).results(240)[0]
        for cut in (ONE, TWO)
    ]
    return {name: {cut: made for one in found for cut, made in one[name].items()} for name in CASES}


@pytest.mark.parametrize("name", CASES)
def test_two_gpus_train_what_one_does(outcomes: dict[str, dict[str, Outcome]], name: str) -> None:
    (metrics, tensors), (expected_metrics, expected) = outcomes[name][str(TWO)], outcomes[name][str(ONE)]
    assert tensors.keys() == expected.keys()
    differences = {key: difference(tensors[key], expected[key]) for key in expected}
    assert max(differences.values()) < TOLERANCE, sorted(differences.items(), key=lambda item: -item[1])[:5]
    for found, wanted in zip(metrics, expected_metrics, strict=True):
        assert of_learning(found) == pytest.approx(of_learning(wanted), rel=TOLERANCE, abs=TOLERANCE)


def of_learning(metrics: dict[str, float]) -> dict[str, float]:
    """Without what the machine is asked for."""
    return {name: value for name, value in metrics.items() if name not in ("mfu", "gpu_memory_peak_mib")}
