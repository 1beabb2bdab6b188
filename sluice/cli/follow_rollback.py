"""A rollback that is asked for -> the moment in which engines serve the older weights, or why they do not."""

import time

from shared.errors import SluiceError
from shared.weights_answers import RollbackAnswer, VersionList
from sluice.cli.output import ERRORS
from sluice.cli.watch import POLL_S, patiently
from sluice.client import Client


def follow_rollback(client: Client, asked: RollbackAnswer, within_s: float) -> RollbackAnswer:
    """Wait until the version is published again, and an engine has it or a newer one is published.

    Raises:
        SluiceError: it is refused, the run ended before, or `within_s` seconds have passed.
    """
    until = time.monotonic() + within_s
    with ERRORS.status(f"{asked.run}: going back to version {asked.version}"):
        while True:
            found = patiently(lambda: client.weights(asked.run, 1))
            standing = found.rollback
            now = standing if standing is not None and standing.asked >= asked.asked else asked
            if now.state == "refused":
                raise SluiceError(f"run {asked.run} does not go back: {now.reason}")
            is_published = now.step is not None and (found.current or 0) >= now.step
            if is_published and _is_taken(client, now, found):
                return now
            run = patiently(lambda: client.run(asked.run))
            if run.has_ended:
                raise SluiceError(f"run {asked.run} was {run.state} before it had gone back to version {asked.version}")
            if time.monotonic() > until:
                raise SluiceError(_late(now, is_published, within_s))
            time.sleep(POLL_S)


def _is_taken(client: Client, now: RollbackAnswer, found: VersionList) -> bool:
    """Also in a run that has no engines, whose versions have no checksum."""
    step = now.step or 0
    made = patiently(lambda: client.weight_version(now.run, step))
    return made.checksum is None or made.engines_done > 0 or (found.current or 0) > step


def _late(now: RollbackAnswer, is_published: bool, within_s: float) -> str:
    where = "was not taken up by the trainer yet"
    if now.step is not None:
        where = "is published, but no engine has it yet," if is_published else "is recorded and not published yet"
    return (
        f"the rollback to version {now.version} {where} after {within_s:g} s; it goes on without you:"
        " see `sluice status` and `sluice logs trainer`"
    )
