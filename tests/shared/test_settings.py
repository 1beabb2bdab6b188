"""File < environment < command line, and the sentences for wrong settings."""

from pathlib import Path

import pytest

from shared.deployment import load_deployment, run_environment
from shared.errors import SettingsError
from shared.run_settings import RunSettings
from shared.settings import Layer, from_assignments, from_environment, merge, read_toml, validate, validate_layers

RUN = {
    "name": "sums",
    "model": {"path": "/models/tiny"},
    "data": {"datasets": [{"name": "sums"}]},
    "trainer": {"steps": 10},
}


def refusal(*assignments: str) -> str:
    with pytest.raises(SettingsError) as caught:
        validate(RunSettings, merge(RUN, from_assignments(assignments)), "run.toml")
    return str(caught.value)


def test_the_command_line_wins_over_the_environment_and_that_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "sluice.toml"
    file.write_text("[gateway]\nport = 1000\nhost = '127.0.0.9'\n[router]\nport = 2000\n")
    environ = {"SLUICE_GATEWAY__PORT": "1001", "SLUICE_ROUTER__PORT": "2001", "OTHER": "x"}
    deployment = load_deployment(file, environ, {"router": {"port": 2002}})
    assert (deployment.gateway.host, deployment.gateway.port, deployment.router.port) == ("127.0.0.9", 1001, 2002)


def test_assignments_are_read_as_toml_and_else_as_text() -> None:
    tree = from_assignments(["trainer.learning_rate=1e-4", "data.shuffle=false", "model.path=/a b", "x.y=[1, 2]"])
    assert tree == {
        "trainer": {"learning_rate": 1e-4},
        "data": {"shuffle": False},
        "model": {"path": "/a b"},
        "x": {"y": [1, 2]},
    }
    assert from_environment({"SLUICE_A__B": "3"}, "SLUICE_") == {"a": {"b": 3}}


def test_a_misspelt_name_is_answered_with_the_right_one() -> None:
    assert "trainer.learning_rat is not a setting; did you mean trainer.learning_rate?" in refusal(
        "trainer.learning_rat=1"
    )
    assert "rolout is not a setting; did you mean rollout?" in refusal("rolout.group_size=1")
    assert "did you mean rollout.sampling.temperature?" in refusal("rollout.sampling.temprature=1")
    assert "known here: " in refusal("model.zzzzzzz=1")


def test_every_wrong_setting_is_named_at_once() -> None:
    text = refusal("trainer.steps=-1", "rollout.max_staleness=-1")
    assert "run.toml: trainer.steps is -1" in text
    assert "run.toml: rollout.max_staleness is -1" in text


def test_a_missing_setting_is_named() -> None:
    with pytest.raises(SettingsError, match=r"run.toml: trainer is required; add it"):
        validate(RunSettings, {k: v for k, v in RUN.items() if k != "trainer"}, "run.toml")


def deployment_refusal(file: str, environ: dict[str, str], *assignments: str) -> str:
    with pytest.raises(SettingsError) as caught:
        load_deployment(Path(file), environ, from_assignments(assignments))
    return str(caught.value)


def deployment_refusal_of(name: str, value: str) -> str:
    with pytest.raises(SettingsError) as caught:
        load_deployment(environ={f"SLUICE_{name.upper().replace('.', '__')}": value})
    return str(caught.value)


def test_a_wrong_setting_of_a_deployment_is_told_with_the_place_where_it_stands(tmp_path: Path) -> None:
    file = tmp_path / "sluice.toml"
    file.write_text("[gateway]\nport = 1000\n[log]\nlevel = 'loud'\n")
    text = deployment_refusal(str(file), {"SLUICE_GATEWAY__PROT": "1"}, "router.port=0")
    assert text.splitlines() == [
        "SLUICE_GATEWAY__PROT: gateway.prot is not a setting; did you mean gateway.port?",
        "--set: router.port is 0; input should be greater than 0",
        f"{file}: log.level is 'loud'; input should be 'debug', 'info', 'warning' or 'error'",
    ]
    assert deployment_refusal(str(file), {"SLUICE_GATEWAY__PORT": "0"}, "log.level=info").startswith(
        "SLUICE_GATEWAY__PORT: gateway.port is 0"
    )
    file.write_text("[gateway]\nport = 0\n")
    assert deployment_refusal(str(file), {"SLUICE_GATEWAY__PORT": "0"}, "gateway.port=x").startswith("--set: ")
    assert load_deployment(file, {"SLUICE_GATEWAY__PORT": "7"}).gateway.port == 7


def run_refusal(tree: dict[str, object], environ: dict[str, str], *assignments: str) -> str:
    layers = [Layer("run.toml", tree), run_environment(environ), Layer("--set", from_assignments(assignments))]
    with pytest.raises(SettingsError) as caught:
        validate_layers(RunSettings, layers)
    return str(caught.value)


def test_a_wrong_setting_of_a_run_is_told_with_the_place_where_it_stands() -> None:
    assert run_refusal(RUN, {"SLUICE_RUN__SEED": "x"}).startswith("SLUICE_RUN__SEED: seed is 'x'")
    assert run_refusal(RUN, {}, "data.datasets=[{name='a', weight=-1}]").startswith("--set: data.datasets.0.weight")
    assert run_refusal(RUN, {"SLUICE_RUN__DATA__DATASETS": "[{nme='a'}]"}).splitlines() == [
        "SLUICE_RUN__DATA__DATASETS: data.datasets.0.name is required; add it",
        "SLUICE_RUN__DATA__DATASETS: data.datasets.0.nme is not a setting; did you mean data.datasets.0.name?",
    ]
    without = {name: value for name, value in RUN.items() if name != "model"}
    assert run_refusal(without, {}, "trainer.steps=3") == "run.toml: model is required; add it"
    # what does not go together stands in several places
    both = run_refusal({**RUN, "reward": {"deadline_s": 3}}, {"SLUICE_RUN__REWARD__TYPE": "remote"})
    assert both.startswith("run.toml and SLUICE_RUN__*: reward.url is ''; ")


@pytest.mark.parametrize(
    ("assignments", "sentence"),
    [
        (["rollout.group_size=1", "trainer.advantage.normalize_std=false"], "write group_size = 2 or more"),
        (["rollout.sampling.top_k=0"], "write 1 or more, or -1 for all tokens"),
        (["seed=-1"], "seed is -1; input should be greater than or equal to 0"),
        (["trainer.warmup_steps=11"], "write at most 10"),
        (["kind=sft", 'eval.datasets=["held-out"]'], "needs engines"),
        (["metrics.project=mine"], 'names neither; write sinks = ["jsonl", "wandb"], or leave it out'),
        (['metrics.sinks=["tensorboard"]', "metrics.name=mine"], "metrics.name is what wandb and trackio show"),
        (["data.datasets=[]"], "data.datasets names no dataset to train on"),
        (["trainer.steps=0", "kind=sft", 'eval.datasets=["held-out"]'], "a run of kind sft has no engines"),
        (["trainer.steps=0", "kind=dpo"], "a run of kind dpo has no engines to evaluate its model with"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(assignments: list[str], sentence: str) -> None:
    assert sentence in refusal(*assignments)


@pytest.mark.parametrize("sink", ["wandb", "trackio"])
def test_a_sink_with_projects_takes_names(sink: str) -> None:
    given = [f'metrics.sinks=["jsonl", "{sink}"]', "metrics.project=mine", "metrics.name=first"]
    assert validate(RunSettings, merge(RUN, from_assignments(given)), "run.toml").metrics.project == "mine"


def test_any_run_file_evaluates_with_0_steps_and_needs_no_dataset_to_train_on() -> None:
    trainer = {"steps": 0, "warmup_steps": 5, "advantage": {"estimator": "ppo"}, "critic": {"warmup_steps": 5}}
    evaluation = {**RUN, "trainer": trainer, "eval": {"datasets": ["held-out"]}}
    bare = {name: value for name, value in evaluation.items() if name != "data"}
    for tree in (evaluation, bare):
        run = validate(RunSettings, tree, "run.toml")
        assert (run.evaluates_only, run.trained_datasets, run.datasets) == (True, [], {"held-out"})
    assert validate(RunSettings, {**RUN, "eval": {"datasets": ["held-out"]}}, "run.toml").datasets == {
        "sums",
        "held-out",
    }


def test_a_malformed_file_and_a_missing_one_are_named(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text("a = = 1")
    with pytest.raises(SettingsError, match=r"run.toml: not valid TOML.*line 1"):
        read_toml(file)
    with pytest.raises(SettingsError, match="cannot be read"):
        read_toml(tmp_path / "none.toml")
    with pytest.raises(SettingsError, match=r"write section.name=value"):
        from_assignments(["trainer.steps"])


def test_settings_are_frozen() -> None:
    settings = validate(RunSettings, RUN, "run.toml")
    with pytest.raises(ValueError, match="frozen"):
        settings.seed = 3  # type: ignore[misc]


def test_the_place_of_a_section_that_took_the_place_of_a_value_is_told() -> None:
    assert (
        run_refusal(RUN, {}, "trainer.steps.x=3")
        == "--set: trainer.steps is a section; input should be a valid integer"
    )
    assert run_refusal(RUN, {}, "data.datasets.0.name=x") == (
        "--set: data.datasets is a section; write a list of tables of name, weight"
    )


@pytest.mark.parametrize(
    ("assignment", "sentence"),
    [
        ("trainer=3", "trainer is 3; write a table of steps, backend"),
        ('data.datasets=["sums"]', "data.datasets.0 is 'sums'; write a table of name, weight"),
        ("eval.datasets=held", "eval.datasets is 'held'; write a list, in brackets"),
        ("name=A", "name is 'A'; write 1 to 64 of a-z 0-9 _ . - beginning with a letter or digit"),
        ("trainer.steps=true", "trainer.steps is True; write a number"),
        ("trainer.loss.clip_low=true", "trainer.loss.clip_low is True; write a number"),
    ],
)
def test_a_value_of_the_wrong_type_is_answered_with_what_to_write(assignment: str, sentence: str) -> None:
    assert f"run.toml: {sentence}" in refusal(assignment)


@pytest.mark.parametrize("url", ["127.0.0.1:8300", "ftp://x", "http://", "http://[::1", "http://a:99999", "http://a b"])
def test_an_address_that_nothing_can_ask_is_refused(url: str) -> None:
    for name in ("gateway.url", "router.url"):
        assert f"{name} is {url!r}; write http://HOST:PORT, or leave it empty" in deployment_refusal_of(name, url)
    assert load_deployment(environ={"SLUICE_GATEWAY__URL": "https://a/sluice"}).gateway_url == "https://a/sluice"


def test_a_redis_url_without_its_scheme_is_refused() -> None:
    assert "redis.url is 'abc'; write redis://:password@host:port/0" in deployment_refusal_of("redis.url", "abc")


def test_a_variable_with_one_underscore_is_refused_and_those_of_compose_are_not() -> None:
    with pytest.raises(SettingsError, match="did you mean SLUICE_GATEWAY__PORT"):
        load_deployment(environ={"SLUICE_GATEWAY_PORT": "9999"})
    assert load_deployment(environ={"SLUICE_REDIS_PASSWORD": "x"}) == load_deployment(environ={})
