"""An engine, whoever keeps it -> its lives, one after the other: what the sidecar knows of either kind."""

from typing import ClassVar, Protocol

from services.rollout.engine_calls import EngineCalls


class Life(Protocol):
    """One life of an engine: from the moment in which it is up until it is not."""

    was_there_before: ClassVar[bool]
    """Whether a sidecar that is gone may have left it in the middle of an update."""
    calls: EngineCalls
    incarnation: str

    @property
    def device(self) -> str: ...

    @property
    def ranks(self) -> int: ...

    @property
    def shares_prefixes(self) -> bool: ...

    async def watch(self) -> None:
        """Returns never; EngineDied at the end of this life."""
        ...


class Lives(Protocol):
    """The lives of an engine in one run, one after the other."""

    url: str

    async def start(self) -> Life:
        """The next life, once it has begun.

        Raises:
            EngineDied: it did not.
            RunRejected: the run is starting, and the engine cannot serve it.
        """
        ...

    async def stop(self, grace_s: float = 0) -> None:
        """End this life, as far as it is ours to end."""
        ...

    async def release(self) -> None:
        """The run is over."""
        ...

    def next_delay_s(self, reason: str, served: bool = False) -> float:
        """Seconds to wait after a death; EngineLost if somebody has to look first."""
        ...
