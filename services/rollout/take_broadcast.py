"""One announced version -> its buckets in the engine, received in the process group that the trainer leads."""

import contextlib
import math
import time
from typing import ClassVar

from services.rollout.engine_calls import EngineCalls, EngineRefused
from shared.enrolment import Part
from shared.messages import TensorSpec, WeightVersion

STALL_S, SLOWEST_BYTES_S, BYTES = 15.0, 50e6, 4
"""A bucket that takes longer does not come any more: seconds, bytes a second on top, and bytes of a number at most.

It is twice as long as the trainer's own patience, who frees engines on a CPU. On a GPU nobody can, if the trainer died.
"""


class TakeBroadcast:
    """See Incoming."""

    together: ClassVar[bool] = True
    keeps_buffers: ClassVar[bool] = True

    def __init__(self, calls: EngineCalls) -> None:
        self._calls = calls

    async def prepare(self, announced: WeightVersion, part: Part) -> None:
        """Join the group, unless the engine is in it."""
        if part.group == self._calls.group:
            return
        await self._calls.leave_group()
        meeting = announced.rendezvous
        await self._calls.join_group(
            part.group,
            (meeting.host, meeting.port),
            (part.first_rank, part.world_size),
            meeting.backend,
            meeting.done_until - time.time(),
        )

    async def begin(self) -> None:
        """Open an update."""
        try:
            await self._calls.begin_update()
        except EngineRefused:  # one is open still, of a sidecar that is gone
            await self._calls.end_update()
            await self._calls.begin_update()

    async def load(self, announced: WeightVersion, part: Part) -> None:
        """Receive bucket after bucket; the last one names the version."""
        until, last = announced.rendezvous.done_until, len(announced.buckets) - 1
        is_flat = announced.rendezvous.backend == "gloo"
        for number, bucket in enumerate(announced.buckets):
            named = announced.version if number == last else None
            deadline_s = min(until - time.time(), _longest_s(bucket))
            await self._calls.receive_bucket(bucket, part.group, named, deadline_s, is_flat)
        await self._calls.end_update()

    async def give_up(self, announced: WeightVersion) -> None:
        """Close what is open."""
        if announced.rendezvous.backend == "gloo":
            await self._calls.leave_group()  # its connections close, so that nobody waits for this engine
        with contextlib.suppress(EngineRefused):
            await self._calls.end_update()

    def release(self) -> None:
        """Nothing is held: the group stays for the next version."""


def most_bytes(bucket: list[TensorSpec]) -> int:
    """What its tensors take at most, whatever their types."""
    return sum(BYTES * math.prod(spec.shape) for spec in bucket)


def _longest_s(bucket: list[TensorSpec]) -> float:
    return STALL_S + most_bytes(bucket) / SLOWEST_BYTES_S
