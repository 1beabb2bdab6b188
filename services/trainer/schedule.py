"""The number of a step -> its learning rate: warm-up, then constant, linear or cosine decay."""

import math
from typing import Literal

Shape = Literal["constant", "linear", "cosine"]


def learning_rate(step: int, steps: int, peak: float, warmup: int, shape: Shape, min_ratio: float) -> float:
    """Rises in equal steps to `peak` at step `warmup`; a decay reaches peak * min_ratio at the last step.

    Args:
        step: 1 .. steps.
    """
    if step <= warmup:
        return peak * step / warmup
    progress = (step - warmup) / max(steps - warmup, 1)
    falling = {"constant": 1.0, "linear": 1 - progress, "cosine": (1 + math.cos(math.pi * progress)) / 2}[shape]
    return peak * (falling if shape == "constant" else min_ratio + (1 - min_ratio) * falling)
