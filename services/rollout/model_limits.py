"""A model's config.json -> how many token ids it knows, and how long a sequence it takes."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

POSITIONS = ("max_position_embeddings", "n_positions")
"""Names of the longest sequence, in the words of the architectures."""


@dataclass(frozen=True, slots=True)
class ModelLimits:
    """None for what the config does not say."""

    vocabulary: int | None = None
    """Rows of the embedding."""
    context: int | None = None
    """Tokens of the longest sequence."""


def read_limits(config: Path) -> ModelLimits:
    """What the file says; nothing if it is not there."""
    if not config.exists():
        return ModelLimits()
    fields = cast(dict[str, Any], json.loads(config.read_text("utf-8")))
    fields = {**cast(dict[str, Any], fields.get("text_config", {})), **fields}
    size = fields.get("vocab_size")
    return ModelLimits(int(size) if size else None, _context(fields))


def _context(fields: dict[str, Any]) -> int | None:
    """As engines count it: scaled rotations reach further, unless the config names how far they reached before."""
    positions = next((int(fields[name]) for name in POSITIONS if fields.get(name)), None)
    rope = cast(dict[str, Any], fields.get("rope_scaling") or fields.get("rope_parameters") or {})
    if positions is None or "original_max_position_embeddings" in rope or rope.get("rope_type") == "llama3":
        return positions
    return int(positions * float(rope.get("factor") or 1))
