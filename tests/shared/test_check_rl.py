"""Every refusal of the settings of a run of kind rl, but for its trainer's, and what looks alike and is fine."""

import pytest

from shared.errors import SettingsError
from shared.run_settings import RunSettings
from shared.settings import from_assignments, merge, validate

RUN = {
    "name": "sums",
    "model": {"path": "/models/tiny"},
    "data": {"datasets": [{"name": "sums"}]},
    "trainer": {"steps": 10},
}
PLUGIN = ["reward.type=plugin", "reward.plugin=mine:score"]
REMOTE = ["reward.type=remote", "reward.url=http://rewards.example"]
SERVED = ["trainer.distillation.url=http://teacher.example", "trainer.distillation.coef=1.0"]
REFUSED = [
    (["engine.server_args.context_length=256"], "rollout.sampling.max_new_tokens is 256, which leaves no room for"),
    (
        ["engine.server_args.context_length=257", "eval.sampling.max_new_tokens=257", 'eval.datasets=["held-out"]'],
        "eval.sampling.max_new_tokens is 257, which leaves no room for a prompt",
    ),
    (["trainer.steps=0"], "eval.datasets is empty"),
    (["reward.type=remote"], "needs an address such as http://HOST:PORT/"),
    (["reward.type=remote", "reward.url=http://"], "needs an address such as http://HOST:PORT/"),
    (["reward.type=plugin"], 'write plugin = "my_rewards:score"'),
    (["reward.type=plugin", "reward.plugin=mine"], "reward.plugin is 'mine'; write plugin = \"my_rewards:score\""),
    (["reward.plugin=mine:score"], 'write type = "plugin", or leave it out'),
    (["reward.type=math", "reward.url=http://rewards.example"], "reward.url has no effect with reward.type 'math'"),
    ([*PLUGIN, "reward.batch_size=8", "reward.max_tries=2"], "reward.batch_size, max_tries has no effect"),
    ([*REMOTE, "reward.plugin=mine:score"], "reward.plugin has no effect with reward.type 'remote'"),
    (["reward.group_filter=std"], "write keep_all, nonzero_std, or module:function"),
    (["rollout.selection=newest"], "write fifo, freshest, priority, or module:function"),
    (["rollout.selection=mine:"], "write fifo, freshest, priority, or module:function"),
    (["rollout.generate=calculator"], "rollout.generate is 'calculator'; write module:function"),
    (["rollout.staleness_policy=wait", "rollout.over_sampling=2"], "write over_sampling = 0"),
    (["rollout.staleness_policy=wait", "rollout.selection=freshest"], 'write selection = "fifo"'),
    (["rollout.sampling.temperature=0"], "all attempts are equal"),
    (
        ["weights.transport=ipc", "weights.staging=host"],
        "copies that lie where the trainer's weights are; leave it out",
    ),
    ([*SERVED, "rollout.sampling.temperature=0.8"], "write temperature = 1.0, or trainer.distillation.teacher"),
]
FINE = [
    PLUGIN,
    [*REMOTE, "reward.batch_size=8", "reward.max_tries=2", "reward.deadline_s=3"],
    ["reward.type=math", "reward.deadline_s=1"],
    ["reward.group_filter=mine:keep", "rollout.selection=mine:select", "rollout.generate=mine:generate"],
    ["reward.group_filter=nonzero_std", "rollout.selection=priority"],
    ["weights.transport=ipc"],
    ["weights.staging=host"],
    SERVED,
]


def settings(*assignments: str) -> RunSettings:
    return validate(RunSettings, merge(RUN, from_assignments(assignments)), "run.toml")


@pytest.mark.parametrize(("assignments", "sentence"), REFUSED, ids=[" ".join(given) for given, _ in REFUSED])
def test_settings_that_do_not_go_together_are_refused(assignments: list[str], sentence: str) -> None:
    with pytest.raises(SettingsError) as caught:
        settings(*assignments)
    assert sentence in str(caught.value)


@pytest.mark.parametrize("assignments", FINE, ids=" ".join)
def test_settings_that_look_alike_are_fine(assignments: list[str]) -> None:
    found = settings(*assignments)
    assert RunSettings.model_validate(found.model_dump(mode="json")) == found
