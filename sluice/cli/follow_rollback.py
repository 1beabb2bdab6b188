"""A rollback that is asked for -> the moment in which engines serve the older weights, or why they do not."""

import time

from shared.errors import SluiceError
from shared.weights_answers import RollbackAnswer
from sluice.cli.output import ERRORS
from sluice.cli.watch import POLL_S, patiently
from sluice.client import Client


def follow_rollback(client: Client, asked: RollbackAnswer, within_s: float) -> RollbackAnswer:
    """Wait until the version is published again.

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
            if now.step is not None and (found.current or 0) >= now.step:
                return now
            run = patiently(lambda: client.run(asked.run))
            if run.has_ended:
                raise SluiceError(f"run {asked.run} was {run.state} before it had gone back to version {asked.version}")
            if time.monotonic() > until:
                raise SluiceError(_late(now, within_s))
            time.sleep(POLL_S)


def _late(now: RollbackAnswer, within_s: float) -> str:
    where = "is recorded and not published yet" if now.step is not None else "was not taken up by the trainer yet"
    return (
        f"the rollback to version {now.version} {where} after {within_s:g} s; it goes on without you:"
        " see `sluice status` and `sluice logs trainer`"
    )
