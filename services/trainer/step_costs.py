"""One step on this machine -> the seconds of its parts, how much of the devices' speed it used, and their memory."""

import time
from collections.abc import Sequence
from typing import Literal

import torch

from services.trainer.flops import TrainingFlops, peak_flops
from services.trainer.ranks import Ranks

MIB = 2**20
Part = Literal["pack", "estimates", "update"]


class StepCosts:
    """Measured on every rank, told by the first: its seconds, and the largest memory of any."""

    def __init__(
        self, device: torch.device, dtype: torch.dtype, ranks: Ranks, flops: TrainingFlops, epochs: int
    ) -> None:
        """`flops` are those of one pass of the policy, of which a step makes one for each of its epochs."""
        self._device, self._ranks, self._flops, self._epochs = device, ranks, flops, epochs
        self._peak = peak_flops(device) if dtype == torch.bfloat16 else None
        self._begun = self._mark = time.monotonic()
        self._seconds: dict[str, float] = {}

    def begin(self) -> None:
        """A step begins."""
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        self._begun = self._mark = time.monotonic()
        self._seconds = {}

    def lap(self, part: Part) -> None:
        """A part of the step has ended; what it computed is on the CPU, so nothing of it is still under way."""
        now = time.monotonic()
        self._seconds[f"seconds_{part}"] = now - self._mark
        self._mark = now

    def metrics(self, lengths: Sequence[int]) -> dict[str, float]:
        """Of the step that ends here; every rank must make the call.

        MFU is the model FLOPs of the policy's forward and backward passes by what the devices could have done in all
        of the step's seconds (Chowdhery et al. 2022, PaLM, section 4.1); it is known where the device's peak is.

        Args:
            lengths: tokens of each sample of all ranks.
        """
        found = dict(self._seconds)
        if self._peak is not None:
            could = self._peak * self._ranks.size * (time.monotonic() - self._begun)
            found["mfu"] = self._flops.of(lengths) * self._epochs / could
        if self._device.type == "cuda":
            most = torch.tensor(float(torch.cuda.max_memory_allocated(self._device)), dtype=torch.float64)
            found["gpu_memory_peak_mib"] = float(self._ranks.maximum(most)) / MIB
        return found
