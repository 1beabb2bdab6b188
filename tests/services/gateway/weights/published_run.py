"""A played run whose versions are announced and taken, as the trainer and its engines do it."""

import time
from pathlib import Path

from services.trainer.checkpoint import MANIFEST
from shared.enrolment import Part, write_parts
from shared.messages import Rendezvous, StepCommit, StepIntent, WeightVersion
from shared.runs import announce
from shared.version_ledger import Take, with_announcement, with_takes
from tests.services.gateway.ledger.played_run import PlayedRun

METRICS = {"loss": 0.25, "reward_mean": 0.5, "seconds_total": 1.5}


def announced(version: int, group: str = "g") -> WeightVersion:
    place = Rendezvous("h", 1, group, "gloo", 100.0, 200.0)
    return WeightVersion(version, version, [], f"checksum-{version}", {}, place)


async def train(run: PlayedRun, step: int, groups: int = 4) -> None:
    """One step of so many groups of two attempts, recorded and committed."""
    await run.to_ready(groups)
    ready = await run.ready.receive(groups, 0.01)
    ids, lengths = [group.body.group_id for group in ready], [group.body.lengths for group in ready]
    intent = StepIntent(step, ids, step - 1, step, lengths)
    await run.ledger.intend(run.epoch, intent, [group.entry_id for group in ready])
    await run.ledger.commit(run.epoch, StepCommit(step, step, METRICS), ids, 88)


async def publish(run: PlayedRun, version: int, **takes: Take) -> None:
    one = announced(version)
    record = with_takes(with_announcement(None, one, 50.0), takes)
    await run.ledger.announce(run.epoch, one, record)
    await run.ledger.advance("weight_version", version)


async def engine(run: PlayedRun, name: str, version: int, state: str, **fields: object) -> None:
    """An engine that is up, and what it says of a version."""
    await announce(run.redis, "r1", f"engine-up/{name}")
    if state != "silent":
        part = Part(state, "g", "life", 1, since=time.time() - 5, **fields)  # type: ignore[arg-type]
        await write_parts(run.redis, run.keys, version, {name: part})


def write_checkpoint(runs_folder: Path, run: PlayedRun, step: int, owner: str = "") -> None:
    """As far as the gateway looks at it."""
    folder = runs_folder / "r1" / "checkpoints" / f"step_{step:06d}"
    folder.mkdir(parents=True)
    owned = owner or f"{run.record.created:.6f}"
    (folder / MANIFEST).write_text(f'{{"owner": "{owned}", "step": {step}}}')
