"""Settings of versions in files that do nothing with this transport are refused, with what to write."""

import re
from typing import Any

import pytest

from shared.check_weights import weights_problems
from shared.run_settings import WeightSettings


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"folder": "/mnt/w"}, 'weights.folder has no effect with transport = "broadcast"; .* "disk" or "delta"'),
        ({"keep_versions": 5}, "weights.keep_versions has no effect"),
        ({"transport": "disk", "full_every": 5}, 'weights.full_every has no effect .* write transport = "delta"'),
        ({"transport": "delta", "local_folder": "s3://b/w"}, "is to be a path of the engine's host"),
        (
            {"transport": "ipc", "engines_per_group": 4},
            'weights.engines_per_group has no effect with transport = "ipc"',
        ),
        ({"engines_per_group": 4, "max_unavailable": 2}, "write engines_per_group = 2"),
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
        {"engines_per_group": 4, "max_unavailable": 4},
    ],
)
def test_what_goes_together_is_taken(given: dict[str, Any]) -> None:
    assert list(weights_problems(WeightSettings.model_validate(given))) == []
