"""Steps -> Weights & Biases; its own variables (WANDB_MODE, WANDB_API_KEY, ...) say where to."""

import importlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from services.trainer.sinks.position import PositionFile
from services.trainer.sinks.sink import Place, Row

NAME = "wandb"


class WeightsAndBiases:
    """One run there for one run here; a new trainer goes on with it, from the step that the server has.

    Its history cannot be taken back: after Redis has lost steps, a new run in the same group gets all rows.
    """

    def __init__(self, place: Place, newest: int) -> None:
        self._file = PositionFile(place.folder, NAME)
        self._position = self._file.in_life(newest)
        suffix = f"-{self._position.life}" if self._position.life > 1 else ""
        wandb: Any = importlib.import_module("wandb")
        self._run = wandb.init(
            project=place.project,
            name=place.name + suffix,
            group=place.name,
            id=f"{place.run}-{place.owner.replace('.', '')}{suffix}",
            resume="allow",
            dir=str(place.folder),
            config=dict(place.config),
            reinit="create_new",
            settings=wandb.Settings(console="off", silent=True),
        )
        self.last = self._run.step - 1 if self._run.resumed else self._position.step

    def write(self, rows: Sequence[Row]) -> None:
        """See Sink."""
        for row in rows:
            self._run.log(dict(row.metrics), step=row.step)
        self.last = rows[-1].step
        self._position = replace(self._position, step=self.last, has_begun=True)
        self._file.write(self._position)

    def close(self) -> None:
        """See Sink."""
        self._run.finish()
