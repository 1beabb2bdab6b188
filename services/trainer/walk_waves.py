"""Engines that wait for a version -> given it wave after wave, until one fails; who is left waits for another round."""

from collections.abc import Awaitable, Callable, Mapping

from services.trainer.gather_engines import Gathering
from services.trainer.plan_waves import Wave, plan_waves
from services.trainer.rendezvous import Member
from services.trainer.round_outcome import Outcome


class WaveWalk:
    """The rounds of one transport, one after the other."""

    def __init__(self, max_unavailable: int, together: int = 0) -> None:
        """`max_unavailable`, `together`: most engines in a wave, and in a party; 0 for all."""
        self._limit, self._together = max_unavailable, together
        self._failed: set[str] = set()
        """By the last round; they may be paused, and come first in the next one."""

    async def walk(
        self,
        gathering: Gathering,
        outcome: Outcome,
        give: Callable[[Wave], Awaitable[None]],
        groups: Mapping[str, tuple[Member, ...]] | None = None,
    ) -> None:
        """Call `give` for each wave, which enters into the outcome what became of it; `groups` as for `plan_waves`."""
        left = set(gathering.waiting)
        for wave in plan_waves(gathering, self._limit, self._failed, self._together, groups):
            left -= wave.gathering.waiting.keys()
            await give(wave)
            if outcome.failed:
                break
        outcome.waiting, self._failed = tuple(sorted(left)), set(outcome.failed)
