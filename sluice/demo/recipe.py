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
    DPO = "dpo"
    SFT = "sft"

    @property
    def written(self) -> str:
        """As papers write it."""
        titles = {"dr_grpo": "Dr. GRPO", "distill": "on-policy distillation", "sft": "SFT on worked demonstrations"}
        return titles.get(self, self.upper().replace("_PLUS_PLUS", "++").replace("_BASELINE", " with baseline"))

    @property
    def purpose(self) -> str:
        """What the second run teaches."""
        told = {
            "distill": "the teacher judges each token",
            "dpo": "right answers after adding the columns are preferred to wrong ones without thinking",
            "sft": "all demonstrations add the columns",
        }
        return told.get(self, "only right answers are rewarded")


@dataclass(frozen=True, slots=True)
class Recipe:
    """The settings of the demo's runs, whose models are not known yet."""

    algorithm: DemoAlgorithm
    sft: Tree
    teacher: Tree | None
    """SFT once more, from where the first one ended; for distillation."""
    second: Tree
    asked: Tree
    """What the user sets in the last run, by the command line."""
    measuring: Tree | None
    """Answers the held-out rows by any model; None where the second run has engines and does so by itself."""

    def last(self, model: str, teacher: str | None) -> Tree:
        """The last run that trains, with the folders of its models."""
        taught: Tree = {"trainer": {"distillation": {"teacher": teacher}}} if teacher is not None else {}
        return merge(self.second, _at(model), taught, self.asked)

    def measure(self, name: str, model: str) -> Tree:
        """The run that evaluates a model; only where `measuring` is set."""
        assert self.measuring is not None
        return merge(self.measuring, _at(model), {"name": name})


def make_recipe(algorithm: DemoAlgorithm, seed: int, assignments: list[str]) -> Recipe:
    """Raises SettingsError now, not after minutes of SFT."""
    seeded: Tree = {"seed": seed}
    sft, grpo = (merge(read_toml(RUN_FILES / f"{name}.toml"), seeded) for name in ("sft", "grpo"))
    asked, own = from_assignments(assignments), _own(algorithm)
    with_engines = "kind" not in own
    base = Layer("grpo.toml", grpo) if with_engines else Layer("--seed", seeded)
    layers = [base, Layer(f"algorithms/{algorithm}.toml", own), Layer("--run-set", asked)]
    validate_layers(RunSettings, layers)
    return Recipe(
        algorithm,
        sft,
        teacher=merge(_own(DemoAlgorithm.SFT), seeded, {"name": "demo-teacher"})
        if algorithm == DemoAlgorithm.DISTILL
        else None,
        second=merge(base.tree, own),
        asked=asked,
        measuring=None if with_engines else merge(grpo, {"trainer": {"steps": 0}}),
    )


def _own(algorithm: DemoAlgorithm) -> Tree:
    """What the algorithm's file says: what is different from GRPO, or of a kind without engines the whole run."""
    name: Tree = {"name": f"demo-{algorithm}"}
    if algorithm == DemoAlgorithm.GRPO:
        return name
    return merge(name, read_toml(RUN_FILES / "algorithms" / f"{algorithm}.toml"))


def _at(model: str) -> Tree:
    return {"model": {"path": model}}
