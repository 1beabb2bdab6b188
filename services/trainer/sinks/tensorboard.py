"""Steps -> TensorBoard event files in the run's folder: `tensorboard --logdir <home>/runs`."""

import importlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from services.trainer.sinks.position import PositionFile
from services.trainer.sinks.sink import Place, Row

NAME = "tensorboard"


class TensorBoard:
    """Scalars by name. Each trainer begins a file, which hides what earlier ones have of the steps that it writes."""

    def __init__(self, place: Place, newest: int) -> None:
        self._file = PositionFile(place.folder, NAME)
        self._position = self._file.read()
        self.last = min(self._position.step, newest)
        # imported here, since a run may do without
        module: Any = importlib.import_module("torch.utils.tensorboard")
        self._writer = module.SummaryWriter(str(place.folder / NAME), purge_step=self.last + 1)

    def write(self, rows: Sequence[Row]) -> None:
        """See Sink."""
        for row in rows:
            for name, value in row.metrics.items():
                self._writer.add_scalar(name, value, row.step)
        self._writer.flush()
        self.last = rows[-1].step
        self._position = replace(self._position, step=self.last, has_begun=True)
        self._file.write(self._position)

    def close(self) -> None:
        """See Sink."""
        self._writer.close()
