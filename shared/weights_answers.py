"""The JSON objects of a run's weight versions and of the update that is under way, with an example each."""

from typing import Literal

from shared.rest_answers import Answer, example
from shared.weights_examples import ROLLBACK, SUMMARY, UPDATE, VERSION, VERSIONS

Span = tuple[int, int]
"""The first and the last of versions in a row."""


class EngineState(Answer):
    """Where one engine is with one version."""

    engine: str
    state: str
    """done, failed, silent (it is up and has not answered), outdated (it holds other weights that had this number), or
    what it says that it is doing, such as enrolled or go."""
    phases: dict[str, float]
    """done: seconds by phase, as the engine measured them."""
    up: bool | None = None
    """Whether it gave a sign of life lately; null for versions that are not the current one."""
    since: float | None = None
    """When it came into this state."""
    seconds: float | None = None
    """done: how long it took; in a state that is not the last one: how long it has been in it."""
    unverified: int = 0
    """done: tensors whose hash could not be compared; -1 for all."""
    failures: int = 0
    """Tries that failed, also before one that did not."""
    reason: str = ""
    """Of the last failure."""


class VersionSummary(Answer):
    """One version of the weights; times are seconds since the epoch."""

    model_config = example(SUMMARY)
    version: int
    parent: int | None
    """The version that its step started from; null for the one that the run began with."""
    step: int
    checksum: str | None
    """Of all its tensors; null if it was not offered to engines."""
    groups: int
    """That its step trained; 0 for a rollback."""
    attempts: int
    tokens: int
    """Of these attempts, prompts included."""
    metrics: dict[str, float]
    """Of its step; in a list the most important ones."""
    committed: float | None
    announced: float | None
    seconds: float | None
    """Of its last publication, from its beginning until every engine had answered."""
    engines_done: int
    engines_failed: int
    """Engines for which the last word is that they do not have it."""
    is_current: bool
    """It was the last one that was published."""
    left_at: int | None
    """The step that went back behind it; null for what the newest weights come from."""
    can_be_had: bool | None
    """Whether a rollback to it is possible now; null where the run's folder is not on the gateway's machine."""


class VersionDetails(VersionSummary):
    """All that is known of one version."""

    model_config = example(VERSION)
    group_ids: list[int]
    """In the order in which they were trained."""
    parent_run: str | None
    """Where the run is a branch and begins with this version: the run that it comes from."""
    backend: str | None
    """How it travelled: gloo, nccl or files."""
    nbytes: int
    announcements: int
    """How often it was announced: again for engines that came late, and by a trainer that took over."""
    replaced: list[str]
    """Checksums of other weights that had this number before, oldest first."""
    phases: dict[str, float]
    """Seconds of its last publication by phase, as the trainer measured them."""
    engines: list[EngineState]
    more_takes: int
    """Engines that took it and are not listed."""


class RollbackAnswer(Answer):
    """The rollback of a run that was asked for last."""

    model_config = example(ROLLBACK)
    run: str
    version: int
    """The one that the run is to go back to."""
    state: Literal["asked", "recorded", "refused"]
    """asked: the trainer takes it up behind its step in hand; recorded: it is done, whatever happens; refused: nothing
    changes."""
    asked: float
    step: int | None
    """recorded: the step that goes back, and the number under which the old weights are published again."""
    reason: str
    """refused: why, and what could be had."""


class VersionList(Answer):
    """Versions, newest first."""

    model_config = example(VERSIONS)
    run: str
    current: int | None
    versions: list[VersionSummary]
    available: list[Span] | None
    """All versions that a rollback could go to now; null where the run's folder is not on the gateway's machine."""
    rollback: RollbackAnswer | None


class UpdateStatus(Answer):
    """The version that was announced last, and where every engine is with it."""

    model_config = example(UPDATE)
    run: str
    version: int
    checksum: str
    announced: float
    enrol_until: float
    """Engines that have not answered by then get the version later."""
    done_until: float
    complete: bool
    """Every engine that is up has it."""
    rollback: RollbackAnswer | None = None
    """One that is asked for, or recorded and not published yet."""
    engines: list[EngineState]
