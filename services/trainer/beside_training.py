"""Work of a publication on the trainer's GPU -> done on a stream of its own, which waits for none of the training."""

from collections.abc import Generator
from contextlib import contextmanager

import torch


class BesideTraining:
    """One stream. What hangs in it, as a broadcast to an engine that died, holds up nothing in others."""

    def __init__(self) -> None:
        self._stream: torch.cuda.Stream | None = None

    @contextmanager
    def on(self, device: torch.device) -> Generator[None]:
        """What the body queues on a GPU neither waits for a step nor holds one up, and is done when the body ends."""
        if device.type != "cuda":
            yield
            return
        self._stream = self._stream or torch.cuda.Stream(device)
        with torch.cuda.stream(self._stream):
            yield
            self._stream.synchronize()
