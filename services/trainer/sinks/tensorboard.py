"""Steps -> TensorBoard event files in the run's folder: `tensorboard --logdir <home>/runs`."""

from collections.abc import Mapping
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

FOLDER = "tensorboard"


class TensorBoard:
    """Scalars by name. What an earlier trainer wrote of steps that come again is hidden."""

    def __init__(self, folder: Path, first_step: int) -> None:
        self._writer = SummaryWriter(str(folder / FOLDER), purge_step=first_step)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """See Sink."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()
