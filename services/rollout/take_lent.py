"""One announced version -> its buckets in the engine, copied out of memory that a trainer beside it lends."""

import contextlib
import time
from typing import ClassVar

from services.rollout.engine_calls import EngineApart, EngineCalls, EngineRefused
from services.rollout.pickle_handles import pickle_bucket
from shared.enrolment import Part
from shared.memory_handle import machine_id
from shared.messages import WeightVersion


class TakeLent:
    """See Incoming."""

    together: ClassVar[bool] = False
    keeps_buffers: ClassVar[bool] = False

    def __init__(self, calls: EngineCalls) -> None:
        self._calls = calls

    async def prepare(self, announced: WeightVersion, part: Part) -> None:
        """Check that the engine can reach the memory: one that cannot would die of the call."""
        if announced.rendezvous.host != machine_id():
            raise EngineApart(
                'weights.transport is "ipc", and this engine is not on the trainer\'s machine;'
                ' write weights.transport = "broadcast", or run the engine beside the trainer'
            )

    async def begin(self) -> None:
        """Open an update."""
        await self._calls.begin_update()

    async def load(self, announced: WeightVersion, part: Part) -> None:
        """Bucket after bucket; the last one names the version."""
        until, last = announced.rendezvous.done_until, len(announced.buckets) - 1
        for number, (bucket, handles) in enumerate(zip(announced.buckets, part.lent, strict=True)):
            named = announced.version if number == last else None
            pickles = [pickle_bucket(bucket, handle) for handle in handles]
            await self._calls.load_pickled(pickles, named, until - time.time())
        await self._calls.end_update()

    async def give_up(self, announced: WeightVersion) -> None:
        """Close what is open."""
        with contextlib.suppress(EngineRefused):
            await self._calls.end_update()

    def release(self) -> None:
        """Nothing is held: the engine closes what it opened."""
