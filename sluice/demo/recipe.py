"""An algorithm, a seed and settings by command line -> the settings of the demo's runs, checked before any of them."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from shared.run_settings import RunSettings
from shared.settings import Layer, Tree, from_assignments, merge, read_toml, validate_layers

RUN_FILES = Path(__file__).parents[2] / "examples" / "demo"


class DemoAlgorithm(StrEnum):
    """How the second run learns; all but the first have a file in examples/demo/algorithms."""

    GRPO = "grpo"
    DR_GRPO = "dr_grpo"
    RLOO = "rloo"
    GSPO = "gspo"
    CISPO = "cispo"
    REINFORCE_PLUS_PLUS = "reinforce_plus_plus"
    REINFORCE_PLUS_PLUS_BASELINE = "reinforce_plus_plus_baseline"
    PPO = "ppo"
    DISTILL = "distill"

    @property
    def written(self) -> str:
        """As papers write it."""
        titles = {"dr_grpo": "Dr. GRPO", "distill": "on-policy distillation"}
        return titles.get(self, self.upper().replace("_PLUS_PLUS", "++").replace("_BASELINE", " with baseline"))


@dataclass(frozen=True, slots=True)
class Recipe:
    """The settings of the demo's runs, whose models are not known yet."""

    algorithm: DemoAlgorithm
    sft: Tree
    teacher: Tree | None
    """SFT once more, from where the first one ended; for distillation."""
    rl: Tree
    asked: Tree
    """What the user sets in the last run, by the command line."""

    def last(self, model: str, teacher: str | None) -> Tree:
        """The last run, with the folders of its models."""
        models: Tree = {"model": {"path": model}}
        taught: Tree = {"trainer": {"distillation": {"teacher": teacher}}} if teacher is not None else {}
        return merge(self.rl, models, taught, self.asked)


def make_recipe(algorithm: DemoAlgorithm, seed: int, assignments: list[str]) -> Recipe:
    """Raises SettingsError now, not after minutes of SFT."""
    names = ("sft", "teacher", "grpo")
    sft, teacher, grpo = (merge(read_toml(RUN_FILES / f"{name}.toml"), {"seed": seed}) for name in names)
    asked, chosen = from_assignments(assignments), _overlay(algorithm)
    layers = [Layer("grpo.toml", grpo), Layer(f"algorithms/{algorithm}.toml", chosen), Layer("--run-set", asked)]
    validate_layers(RunSettings, layers)
    return Recipe(algorithm, sft, teacher if algorithm == DemoAlgorithm.DISTILL else None, merge(grpo, chosen), asked)


def _overlay(algorithm: DemoAlgorithm) -> Tree:
    name = {"name": f"demo-{algorithm}"}
    if algorithm == DemoAlgorithm.GRPO:
        return name
    return merge(read_toml(RUN_FILES / "algorithms" / f"{algorithm}.toml"), name)
