"""Steps -> Weights & Biases; its own variables (WANDB_MODE, WANDB_API_KEY, ...) say where to."""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class WeightsAndBiases:
    """One run there for one run here; a new trainer goes on with it."""

    def __init__(self, folder: Path, run: str, run_id: str, project: str, config: Mapping[str, Any]) -> None:
        wandb: Any = importlib.import_module("wandb")
        self._run = wandb.init(
            project=project,
            name=run,
            id=run_id,
            resume="allow",
            dir=str(folder),
            config=dict(config),
            reinit="create_new",
        )

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """See Sink."""
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        self._run.finish()
