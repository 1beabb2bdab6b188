"""What rounds of a publication came to -> a take of each engine, for the ledger of versions."""

from dataclasses import replace

from services.trainer.round_outcome import Outcome
from shared.version_ledger import Take

REASON_CHARACTERS = 300


def takes_of(outcome: Outcome, now: float) -> dict[str, Take]:
    """By engine; `now` is in seconds since the epoch."""
    takes = {name: Take("failed", now) for name in outcome.failed}
    for name, part in outcome.done.items():
        seconds = {phase: round(value, 6) for phase, value in part.seconds.items()}
        takes[name] = Take("done", part.since or now, part.incarnation, seconds, part.unverified)
    return {
        name: _with_setbacks(take, [why for one, why in outcome.setbacks if one == name])
        for name, take in takes.items()
    }


def _with_setbacks(take: Take, reasons: list[str]) -> Take:
    return replace(take, failures=len(reasons), reason=reasons[-1][:REASON_CHARACTERS]) if reasons else take
