"""Settings of versions in files that do nothing with this transport are refused, with what to write."""

import re
from typing import Any

import pytest

from shared.check_weights import weights_problems
from shared.run_settings import RunSettings, WeightSettings
from shared.settings import merge

TURNS: dict[str, Any] = {
    "name": "r1",
    "model": {"path": "m"},
    "data": {"datasets": [{"name": "sums"}]},
    "trainer": {"steps": 1},
    "weights": {"transport": "ipc", "memory": "turns"},
}


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"folder": "/mnt/w"}, 'weights.folder has no effect with transport = "broadcast"; .* "disk" or "delta"'),
        ({"keep_versions": 5}, "weights.keep_versions has no effect"),
        ({"transport": "disk", "full_every": 5}, 'weights.full_every has no effect .* write transport = "delta"'),
        ({"transport": "delta", "local_folder": "s3://b/w"}, "is to be a path of the engine's host"),
    ],
)
def test_what_does_not_go_together_is_said(given: dict[str, Any], sentence: str) -> None:
    (problem,) = weights_problems(WeightSettings.model_validate(given))
    assert re.search(sentence, problem)


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"transport": "disk", "folder": "s3://bucket/weights", "local_folder": "/nvme", "keep_versions": 5},
        {"transport": "delta", "full_every": 5, "keep_versions": 1},
    ],
)
def test_what_goes_together_is_taken(given: dict[str, Any]) -> None:
    assert list(weights_problems(WeightSettings.model_validate(given))) == []


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"weights": {"transport": "broadcast"}}, r'weights.transport is "broadcast"; write transport = "ipc"'),
        ({"rollout": {"max_staleness": 2}}, r"rollout.max_staleness is 2, .*; write max_staleness = 0, or memory ="),
        (
            {"engine": {"update_mode": "in_place"}},
            r'engine.update_mode is "in_place", .*; write update_mode = "retract"',
        ),
        ({"weights": {"max_unavailable": 1}}, r"weights.max_unavailable is 1, .*; leave it out"),
        (
            {"engine": {"server_args": {"enable_memory_saver": False}}},
            r"enable_memory_saver, and sets it; leave it out",
        ),
    ],
)
def test_what_cannot_be_in_turns_is_refused_with_what_to_write(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        RunSettings.model_validate(merge(TURNS, given))
    kept: dict[str, Any] = {"weights": {"memory": "kept"}}
    RunSettings.model_validate(merge(TURNS, given, kept))


def test_a_synchronous_run_may_take_turns() -> None:
    for mode in ("retract", "abort", "drain"):
        RunSettings.model_validate(merge(TURNS, {"engine": {"update_mode": mode}, "rollout": {"over_sampling": 2}}))
