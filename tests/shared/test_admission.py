"""The admission rule, as numbers."""

import pytest

from shared.admission import admission_limit
from shared.run_settings import RunSettings
from shared.settings import from_assignments, merge, validate

BASE = {
    "name": "a",
    "model": {"path": "m"},
    "data": {"datasets": [{"name": "d"}]},
    "trainer": {"steps": 10},
    "rollout": {"groups_per_step": 8},
}


@pytest.mark.parametrize(
    ("assignments", "version", "limit"),
    [
        ([], 0, 8),
        ([], 3, 32),
        (["rollout.max_staleness=2"], 0, 24),
        (["rollout.max_staleness=2"], 9, 80),
        (["rollout.over_sampling=4"], 0, 12),
        (["rollout.over_sampling=4"], 9, 80),
        (["rollout.over_sampling=20"], 8, 80),
        (["kind=sft"], 0, 40),
        (["kind=sft"], 8, 80),
    ],
)
def test_admission_follows_the_rule_and_stops_at_the_last_step(
    assignments: list[str], version: int, limit: int
) -> None:
    settings = validate(RunSettings, merge(BASE, from_assignments(assignments)), "run.toml")
    assert admission_limit(settings, version) == limit
