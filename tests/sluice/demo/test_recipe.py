"""The demo's runs for each algorithm: settings that go together, and that are what the algorithm's name says."""

import pytest

from shared.errors import SettingsError
from shared.run_settings import RunSettings
from sluice.demo.recipe import RUN_FILES, DemoAlgorithm, Recipe, make_recipe
from tests.sluice.conftest import Sluice

WITHOUT_ENGINES = (DemoAlgorithm.DPO, DemoAlgorithm.SFT)


def last_run(recipe: Recipe) -> RunSettings:
    return RunSettings.model_validate(recipe.last("/models/student", "/models/teacher" if recipe.teacher else None))


@pytest.mark.parametrize("algorithm", DemoAlgorithm)
def test_every_algorithm_makes_runs_that_can_be_started(algorithm: DemoAlgorithm) -> None:
    recipe = make_recipe(algorithm, 7, ["trainer.steps=30"])
    run = last_run(recipe)
    assert (run.seed, run.trainer.steps, run.model.path) == (7, 30, "/models/student")
    assert run.kind == (algorithm if algorithm in WITHOUT_ENGINES else "rl")
    if run.kind == "rl":
        assert run.rollout.group_size * run.rollout.groups_per_step == 512
    others = [RunSettings.model_validate(tree) for tree in (recipe.sft, recipe.teacher) if tree is not None]
    assert {one.kind for one in others} == {"sft"}
    assert len({run.name, *(one.name for one in others), "demo-before", "demo-after"}) == 3 + len(others)


@pytest.mark.parametrize("algorithm", DemoAlgorithm)
def test_a_model_is_measured_as_grpo_measures_it_where_the_run_itself_has_no_engines(algorithm: DemoAlgorithm) -> None:
    recipe = make_recipe(algorithm, 7, ["trainer.steps=30"])
    if algorithm not in WITHOUT_ENGINES:
        assert recipe.measuring is None
        return
    measured = RunSettings.model_validate(recipe.measure("demo-before", "/models/student"))
    grpo = last_run(make_recipe(DemoAlgorithm.GRPO, 7, []))
    assert (measured.name, measured.model.path, measured.evaluates_only) == ("demo-before", "/models/student", True)
    for section in ("eval", "reward", "engine", "model", "seed"):
        assert getattr(measured, section) == getattr(grpo, section), section


def test_no_two_algorithms_train_alike() -> None:
    runs = [last_run(make_recipe(algorithm, 0, [])) for algorithm in DemoAlgorithm]
    kinds = {run.model_copy(update={"name": ""}).model_dump_json() for run in runs}
    assert len(kinds) == len(DemoAlgorithm)


def test_every_file_of_an_algorithm_can_be_asked_for() -> None:
    files = {file.stem for file in (RUN_FILES / "algorithms").iterdir()}
    assert files == {*DemoAlgorithm} - {DemoAlgorithm.GRPO}


def test_only_a_student_gets_a_teacher() -> None:
    taught = [algorithm for algorithm in DemoAlgorithm if make_recipe(algorithm, 0, []).teacher]
    assert taught == [DemoAlgorithm.DISTILL]
    assert last_run(make_recipe(DemoAlgorithm.DISTILL, 0, [])).trainer.distillation.teacher == "/models/teacher"


def test_a_setting_that_the_algorithm_does_not_read_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"trainer.critic.warmup_steps has no effect on rloo"):
        make_recipe(DemoAlgorithm.RLOO, 0, ["trainer.critic.warmup_steps=3"])


def test_an_unknown_algorithm_is_told_with_those_that_there_are(sluice: Sluice) -> None:
    outcome = sluice("demo", "--home", "here", "--algorithm", "reinforce")
    assert outcome.code == 2
    assert "'reinforce' is not one of" in outcome.err
    assert "reinforce_plus_plus_baseline" in outcome.err


def test_the_help_lists_the_algorithms(sluice: Sluice, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    outcome = sluice("demo", "--help")
    assert outcome.code == 0
    assert "|".join(DemoAlgorithm) in outcome.out
