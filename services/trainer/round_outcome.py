"""The engines' answers to one offer of a version -> who has it, who has not and why, and how long that took."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from services.trainer.gather_engines import Engines
from shared.enrolment import Part


@dataclass
class Outcome:
    """What became of a version at every engine that took part."""

    done: dict[str, Part] = field(default_factory=dict[str, Part])
    failed: dict[str, str] = field(default_factory=dict[str, str])
    """Engine -> why it does not have the version."""
    waiting: tuple[str, ...] = ()
    """Engines whose turn did not come in this round: one before them failed, and is to be helped first."""
    setbacks: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    """(engine, why) of every round in which one failed, also if it has the version by now."""
    seconds: dict[str, float] = field(default_factory=dict[str, float])
    """By phase: write, enrol, connect, ready, broadcast, lend, prove; sums over the waves."""

    def merge(self, parties: Iterable["Outcome"]) -> None:
        """Add what became of parties at the same time: a phase took as long as with the slowest of them."""
        together: dict[str, float] = {}
        for party in parties:
            self.done.update(party.done)
            self.failed.update(party.failed)
            for phase, seconds in party.seconds.items():
                together[phase] = max(together.get(phase, 0.0), seconds)
        for phase, seconds in together.items():
            self.seconds[phase] = self.seconds.get(phase, 0.0) + seconds

    def sort(self, waiting: Iterable[str], parts: Mapping[str, Part], engines: Engines) -> None:
        """Into done and failed, by how the parts of those who took part have ended; nobody waits again for the rest."""
        for name in waiting:
            part = parts.get(name)
            if part is not None and part.state == "done":
                self.done[name] = part
            elif part is not None:
                self.failed[name] = part.reason or "the engine started anew"
            else:
                self.failed[name] = "the engine did not finish in time"
                engines.expect_nothing_of(name)
