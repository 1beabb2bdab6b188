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


FP8: dict[str, Any] = {"model": {"path": "m", "dtype": "bfloat16"}, "weights": {"quantization": "fp8"}}


def run_of(**sections: Any) -> RunSettings:
    tree = {"name": "r", "data": {"datasets": [{"name": "sums"}]}, "trainer": {"steps": 1, "learning_rate": 1e-3}}
    return RunSettings.model_validate({**tree, "model": {"path": "m"}, **sections})


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({**FP8, "model": {"path": "m"}}, 'model.dtype is float32; write model.dtype = "bfloat16"'),
        ({**FP8, "engine": {"device": "cpu"}}, "serve on GPUs only"),
        ({**FP8, "engine": {"server_args": {"quantization": "awq"}}}, "server_args.quantization is 'awq'; leave"),
        ({**FP8, "engine": {"server_args": {"load_format": "auto"}}}, "load_format is 'auto', .* leave it out"),
        (
            {**FP8, "engine": {"server_args": {"json_model_override_args": {"rope_theta": 1e6}}}},
            "json_model_override_args is {'rope_theta': 1000000.0}; write the text of a JSON object",
        ),
        (
            {**FP8, "engine": {"server_args": {"json_model_override_args": "{rope_theta: 1}"}}},
            "write the text of a JSON object",
        ),
        (
            {"engine": {"server_args": {"quantization": "fp8"}}},
            "takes no versions that are not; .* weights.quant",
        ),
        ({"weights": {"modules_to_not_convert": ["o_proj"]}}, "modules_to_not_convert has no effect"),
    ],
)
def test_versions_in_fp8_want_a_model_and_an_engine_that_fit(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        run_of(**given)


def test_versions_in_fp8_may_be_asked_for_by_the_engines_argument_too() -> None:
    run_of(**{**FP8, "engine": {"server_args": {"quantization": "fp8", "load_format": "dummy"}}})


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
