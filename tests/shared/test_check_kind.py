"""Settings about engines, rewards and weights are refused where answers are in the rows."""

import pytest

from shared.check_kind import unused_settings
from shared.errors import SettingsError
from shared.run_settings import EngineSettings, RewardSettings, RolloutSettings, RunSettings
from shared.settings import from_assignments, merge, validate

RUN = {
    "name": "pairs",
    "model": {"path": "/models/tiny"},
    "data": {"datasets": [{"name": "pairs"}]},
    "trainer": {"steps": 10},
}


def settings(*assignments: str) -> RunSettings:
    return validate(RunSettings, merge(RUN, from_assignments(assignments)), "run.toml")


@pytest.mark.parametrize("kind", ["sft", "dpo"])
@pytest.mark.parametrize(
    ("assignment", "sentence"),
    [
        ("rollout.group_size=4", "rollout.group_size has no effect in a run of kind"),
        ("rollout.sampling.temperature=0.5", "rollout.sampling has no effect"),
        ("rollout.max_staleness=2", "whose answers are in its rows; leave it out"),
        ("engine.update_mode=drain", "engine.update_mode has no effect"),
        ("reward.type=math", "reward.type has no effect"),
        ("weights.bucket_mib=3", "weights.bucket_mib has no effect"),
    ],
)
def test_what_a_run_without_rollouts_does_not_read_is_refused(kind: str, assignment: str, sentence: str) -> None:
    settings(assignment, "rollout.sampling.max_new_tokens=8")
    with pytest.raises(SettingsError, match=sentence):
        settings(f"kind={kind}", assignment)


@pytest.mark.parametrize("kind", ["sft", "dpo"])
def test_what_it_reads_is_taken(kind: str) -> None:
    settings(f"kind={kind}", "rollout.groups_per_step=8", "rollout.max_stored_mib=99", "engine.device=cpu")


def test_each_section_has_one_sentence_that_names_all_of_them() -> None:
    sections = {
        "rollout": RolloutSettings(group_size=3, over_sampling=2, groups_per_step=5),
        "engine": EngineSettings(),
        "reward": RewardSettings(type="math"),
    }
    first, second = unused_settings("dpo", sections)
    assert first.startswith("rollout.group_size, over_sampling has no effect")
    assert second.startswith("reward.type has no effect")
