"""One announced version of adapters -> an adapter beside those that an engine serves, proven before it answers with it.

Nothing of what requests in flight use is changed, so nothing waits: they end with their version.
"""

import time
from dataclasses import dataclass, field
from typing import ClassVar

from services.rollout.engine_calls import EngineCalls, EngineSilent
from services.rollout.engine_update import UpdateFailed
from services.rollout.take_files import TakeFiles
from services.rollout.update_progress import UpdateProgress
from shared.enrolment import Part
from shared.laps import Laps
from shared.messages import WeightVersion


@dataclass
class AdapterUpdate:
    """As EngineUpdate, of an engine whose model stays as it is."""

    mixed: ClassVar[bool] = False
    """The engine never holds parts of two versions."""
    gave_memory: ClassVar[bool] = False
    """It keeps its memory, and the model that adapters are for."""
    calls: EngineCalls
    files: TakeFiles
    unfinished: bool = False
    """True after a call that got no answer."""
    seconds: dict[str, float] = field(default_factory=dict[str, float])
    """How long the phases of the last update took."""

    async def run(self, announced: WeightVersion, part: Part, progress: UpdateProgress) -> int:
        """Load, prove and serve a version; `progress` hears of each phase.

        Returns:
            How many tensors could not be verified: none.

        Raises:
            EngineError: the engine does not hold the version, and goes on with the one that it has.
        """
        self.seconds = {}
        try:
            await self._take(announced, part, progress)
        except EngineSilent:
            self.unfinished = True
            raise
        finally:
            self.files.release()
        return 0

    async def _take(self, announced: WeightVersion, part: Part, progress: UpdateProgress) -> None:
        name, until, lap = adapter_name(announced), announced.rendezvous.done_until, Laps(self.seconds)
        progress.enter("preparing")
        await self.files.prepare(announced, part)
        lap("prepare")
        progress.enter("loading")
        await self.calls.load_adapter(name, str(self.files.path), until - time.time())
        lap("load")
        progress.enter("proving")
        prove_adapter(announced.tensor_checksums, await self.calls.checksums(until - time.time(), name))
        lap("prove")
        await self.calls.serve_adapter(name)
        lap("serve")


def prove_adapter(expected: dict[str, str], ranks: list[dict[str, str]]) -> None:
    """UpdateFailed unless every rank of the engine, which keeps the adapter whole, has all that was sent."""
    if not ranks:
        raise UpdateFailed("the engine showed nothing of the adapter")
    for found in ranks:
        wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        if wrong:
            raise UpdateFailed(
                f"{len(wrong)} of {len(expected)} tensors of the adapter differ from the trainer's, such as {wrong[0]}"
            )


def adapter_name(announced: WeightVersion) -> str:
    """`VERSION-MARK`, another one for each announcement: an engine refuses a name that it knows."""
    return f"{announced.version}-{announced.rendezvous.group_name.rpartition('-')[2]}"
