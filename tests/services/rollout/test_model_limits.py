"""What a config.json says about ids and positions, in the words of several architectures."""

import json
from pathlib import Path
from typing import Any

import pytest

from services.rollout.model_limits import ModelLimits, read_limits

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}


@pytest.mark.parametrize(
    ("fields", "limits"),
    [
        ({"vocab_size": 320, "max_position_embeddings": 2048}, ModelLimits(320, 2048)),
        ({"vocab_size": 320, "n_positions": 1024}, ModelLimits(320, 1024)),
        ({"text_config": {"vocab_size": 9, "max_position_embeddings": 64}}, ModelLimits(9, 64)),
        ({"max_position_embeddings": 1024, "rope_scaling": {"type": "linear", "factor": 4.0}}, ModelLimits(None, 4096)),
        ({"max_position_embeddings": 4096, "rope_scaling": YARN}, ModelLimits(None, 4096)),
        ({"max_position_embeddings": 4096, "rope_parameters": {"rope_type": "default"}}, ModelLimits(None, 4096)),
        ({"max_position_embeddings": 8, "rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, ModelLimits(None, 8)),
        ({"vocab_size": 320}, ModelLimits(320, None)),
    ],
)
def test_limits_are_read_as_engines_count_them(tmp_path: Path, fields: dict[str, Any], limits: ModelLimits) -> None:
    (tmp_path / "config.json").write_text(json.dumps(fields))
    assert read_limits(tmp_path / "config.json") == limits


def test_without_a_config_there_are_none(tmp_path: Path) -> None:
    assert read_limits(tmp_path / "config.json") == ModelLimits()
