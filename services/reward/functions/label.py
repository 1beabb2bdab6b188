"""The label of a dataset row -> the text that an answer is compared with."""

import json

from services.reward.score import ScoringFailed


def label_text(label: object) -> str:
    """Text as it is, numbers and booleans as JSON writes them (7, 0.5, true), without space around.

    Raises:
        ScoringFailed: the row has no label, or one that is a list or an object.
    """
    if isinstance(label, str):
        return label.strip()
    if isinstance(label, bool | int | float):
        return json.dumps(label)
    found = "no label" if label is None else f"a label of type {type(label).__name__}"
    raise ScoringFailed(f"the row has {found}; this reward needs a text or a number to compare with")
