"""Server arguments that are not for a run to set are refused when it is submitted, with what to write instead."""

import pytest
from pydantic import ValidationError

from shared.run_settings import RunSettings


@pytest.mark.parametrize(
    ("name", "instead"),
    [("model_path", "model.path"), ("port", "engine.port"), ("dp_size", "count"), ("max_lora_rank", r"lora\.rank")],
)
def test_reserved_server_arguments_are_refused_with_what_to_write(name: str, instead: str) -> None:
    tree = {"name": "r1", "model": {"path": "m"}, "data": {"datasets": [{"name": "sums"}]}, "trainer": {"steps": 4}}
    with pytest.raises(ValidationError, match=rf"server_args\.{name} cannot be set; .*{instead}"):
        RunSettings.model_validate({**tree, "engine": {"server_args": {name: 1}}})
    assert RunSettings.model_validate({**tree, "engine": {"server_args": {"tp_size": 1}}}).engine.server_args
