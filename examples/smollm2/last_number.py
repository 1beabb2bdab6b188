"""A reward plugin: 1 if the last whole number of the response is the label, else 0."""

import re

from shared.messages import Rollout

NUMBER = re.compile(r"-?\d+")


async def score(rollout: Rollout) -> float:
    """Thousands may be set apart by commas."""
    numbers = NUMBER.findall(rollout.text.replace(",", ""))
    return float(bool(numbers) and numbers[-1] == str(rollout.label))
