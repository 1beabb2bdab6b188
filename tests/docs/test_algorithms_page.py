"""docs/algorithms.md names every choice that the settings offer, and its example works."""

import re
from pathlib import Path
from typing import Any, get_args

import torch

from services.trainer.advantages.samples import Samples
from shared.check_trainer import ESTIMATORS, LOSSES
from shared.trainer_settings import CorrectionSettings, DpoSettings, KlSettings, LossSettings, TrainerSettings
from tests.services.trainer.ragged import ragged

PAGE = (Path(__file__).parents[2] / "docs" / "algorithms.md").read_text()
SECTIONS = ("advantage", "loss", "kl", "correction", "critic", "distillation", "dpo")
ELSEWHERE = {"path", "learning_rate"}
"""Of the critic: they say nothing about a formula."""


def choices(annotation: Any) -> set[str]:
    """The words of a Literal, also inside of a union."""
    return {word for part in get_args(annotation) for word in ([part] if isinstance(part, str) else choices(part))}


def test_every_choice_is_on_the_page() -> None:
    fields = [(CorrectionSettings, "type"), (CorrectionSettings, "level"), (CorrectionSettings, "mode")]
    fields += [(LossSettings, "aggregation"), (LossSettings, "old_policy"), (KlSettings, "estimator")]
    fields += [(DpoSettings, "type")]
    words = {*ESTIMATORS, *LOSSES}
    for model, name in fields:
        words |= choices(model.model_fields[name].annotation)
    missing = [word for word in sorted(words) if f"`{word}`" not in PAGE and f'"{word}"`' not in PAGE]
    assert not missing


def test_every_setting_of_an_algorithm_is_on_the_page() -> None:
    for section in SECTIONS:
        model = TrainerSettings.model_fields[section].annotation
        assert model is not None
        assert f"[trainer.{section}]" in PAGE
        names = set(model.model_fields) - ELSEWHERE
        assert not [name for name in names if not re.search(rf"\b{name}\b", PAGE)], section


def test_the_example_makes_advantages() -> None:
    code = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert code is not None
    names: dict[str, Any] = {}
    exec(code.group(1), names)
    samples: Samples = ragged(1).samples
    found = names["advantages"](samples)
    for dataset in (0, 1):
        own = samples.dataset == dataset
        torch.testing.assert_close(found[own], samples.reward[own] - samples.reward[own].mean())
