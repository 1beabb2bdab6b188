"""The checkpoints of a run and its ledger -> the newest state that both know, from where the trainer goes on."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from services.trainer.checkpoint import Checkpoint, Checkpoints
from services.trainer.learner import Learner
from services.trainer.model_files import weights_hash
from services.trainer.step_ledger import Position
from shared.errors import RunRejected
from shared.lineage import Lineage
from shared.logs import Log
from shared.run_settings import RunSettings

WITHOUT_EFFECT = (
    *("backend", "checkpoint_every", "keep_checkpoints", "export_every", "archive"),
    *("nan_policy", "check_first_step", "logprob_diff_alarm"),
)
"""Settings of the trainer that say nothing about the state after a step."""
Archived = Callable[[int], bool]
"""Whether the archive holds a step."""


@dataclass(frozen=True, slots=True)
class Base:
    """A model that a run does not change."""

    path: str
    hash: str
    """Of its configuration and its weights."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a checkpoint says about itself beside its files."""

    seed: int
    schedule: str
    """Digest of the settings that a step depends on."""
    base: Base | None = None
    """The model that the adapters of the checkpoint belong to, if it holds nothing but these."""

    def of(self, position: Position) -> dict[str, Any]:
        """The manifest of a checkpoint that is written while the ledger stands here."""
        ledger = {"step": position.step, "intended": position.intended}
        about = {"ledger": ledger, "seed": self.seed, "schedule": self.schedule}
        return {**about, "base": asdict(self.base)} if self.base else about

    def check_base(self, checkpoint: Checkpoint) -> None:
        """RunRejected if the adapters of a checkpoint belong to another model."""
        noted = checkpoint.about.get("base")
        if self.base is not None and noted is not None and noted["hash"] != self.base.hash:
            raise RunRejected(
                f"{checkpoint.folder} holds adapters of the model that was in {noted['path']}, and {self.base.path}"
                " holds another one now; put that back as model.path, or start a new run"
            )


def manifest_of(settings: RunSettings) -> Manifest:
    """The part of the manifest that is the same in every checkpoint of a run; with adapters it reads the model."""
    trainer = settings.trainer.model_dump(mode="json", exclude=set(WITHOUT_EFFECT))
    relevant = {"kind": settings.kind, "model": settings.model.model_dump(mode="json"), "trainer": trainer}
    base = None
    if settings.lora.rank:
        folder = Path(settings.model.path).expanduser()
        relevant["lora"] = settings.lora.model_dump(mode="json", exclude={"publish"})
        base = Base(str(folder), weights_hash(folder))
    text = json.dumps(relevant, sort_keys=True)
    return Manifest(settings.seed, hashlib.sha256(text.encode()).hexdigest(), base)


def take_up(
    learner: Learner,
    checkpoints: Checkpoints,
    position: Position,
    lineage: Lineage,
    archived: Archived,
    manifest: Manifest,
    log: Log,
) -> int:
    """Load the newest checkpoint that the ledger covers into new models; without one the initial model stays.

    Args:
        archived: whether the archive can stand in for the groups of a step that have left Redis.

    Returns:
        The step that their state belongs to.

    Raises:
        RunRejected: between that state and the ledger are steps whose groups are gone.
    """
    checkpoint = checkpoints.newest(position.step)
    begin = checkpoint.step if checkpoint else 0
    way = lineage.way(begin, position.intended)
    if any(step <= position.forgotten and step not in lineage.rollbacks and not archived(step) for step in way):
        raise RunRejected(
            f"no checkpoint in {checkpoints.folder} is usable at step {position.forgotten} to {position.step}, and the"
            f" groups of the steps up to {position.forgotten} are no longer in Redis; restore the newest checkpoint"
            " or the append-only file of Redis, or start a new run"
        )
    if checkpoint is None:
        return 0
    if checkpoint.about.get("schedule", manifest.schedule) != manifest.schedule:
        log.warning("checkpoint_of_other_settings", checkpoint=str(checkpoints.folder), step=begin)
    manifest.check_base(checkpoint)
    state = learner.state()
    checkpoints.fill(checkpoint, state)
    learner.load_state(state)
    return begin
