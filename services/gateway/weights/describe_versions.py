"""Recorded steps and what is kept of published versions -> the versions of a run as the REST API tells them."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from redis.asyncio import Redis

from services.gateway.refusals import Refusal
from services.gateway.weights.engine_states import engine_states
from services.gateway.weights.read_step_facts import StepFacts, read_step_facts
from services.gateway.weights.what_is_kept import what_is_kept
from shared.lineage import Lineage, read_lineage, spans, why_gone
from shared.rollback import read_rollback
from shared.runs import RunRecord
from shared.scripts import Ledger
from shared.topology import Keys
from shared.version_ledger import VersionRecord, read_records
from shared.weights_answers import RollbackAnswer, VersionDetails, VersionList, VersionSummary

KEY_METRICS = ("reward_mean", "loss", "preference_accuracy", "kl", "grad_norm")
"""Of a step, in a list of versions."""


@dataclass(frozen=True, slots=True)
class Standing:
    """Where the versions of a run stand."""

    first: int
    """The version that the run begins with."""
    newest: int
    """The last one whose step is committed."""
    current: int | None
    """The last one that was published."""
    lineage: Lineage
    available: set[int] | None
    """Those that can be had; None if this machine cannot know."""

    def why_gone(self, version: int) -> str:
        """What a person is told who wants a version that cannot be had any more; empty if it can, or may be."""
        if self.available is None or version in self.available:
            return ""
        return why_gone(version, self.available)


async def list_versions(
    redis: Redis, record: RunRecord, runs_folder: Path, before: int | None, limit: int
) -> VersionList:
    """The newest versions, or those before one of them."""
    keys, standing = Keys(record.run), await where_versions_stand(redis, record, runs_folder)
    last = standing.newest if before is None else min(standing.newest, before - 1)
    versions = range(last, max(standing.first, last - limit + 1) - 1, -1)
    facts = await read_step_facts(redis, keys, versions[-1], last) if versions else {}
    records = await read_records(redis, keys, versions)
    found = [_summary(version, facts.get(version), records.get(version), standing) for version in versions]
    kept, asked = standing.available, await read_rollback(redis, keys)
    return VersionList(
        run=record.run,
        current=standing.current,
        versions=[
            one for one in found if one.committed or one.checksum or one.version == standing.first < standing.newest
        ],
        available=None if kept is None else spans(kept),
        rollback=None if asked is None else RollbackAnswer(run=record.run, **asdict(asked)),
    )


async def describe_version(redis: Redis, record: RunRecord, runs_folder: Path, version: int) -> VersionDetails:
    """Refusal 404 if the run has not made this version."""
    keys, standing = Keys(record.run), await where_versions_stand(redis, record, runs_folder)
    facts = (await read_step_facts(redis, keys, version, version)).get(version)
    kept = (await read_records(redis, keys, [version])).get(version)
    if not standing.first <= version <= standing.newest:
        given = f"it has those from {standing.first} to {standing.newest}"
        raise Refusal(404, f"run {record.run} has no version {version}; {given}")
    if facts is None and kept is None and version != standing.first:
        raise Refusal(404, f"run {record.run} keeps no record of version {version} any more; give a newer one")
    branch = record.settings.branch
    summary: dict[str, Any] = _summary(version, facts, kept, standing).model_dump(exclude={"metrics"})
    return VersionDetails(
        **summary,
        metrics=facts.metrics if facts else {},
        group_ids=facts.group_ids if facts else [],
        parent_run=branch.run if branch and version == standing.first else None,
        backend=kept.backend if kept else None,
        nbytes=kept.nbytes if kept else 0,
        announcements=kept.announcements if kept else 0,
        replaced=kept.replaced if kept else [],
        phases=kept.seconds if kept else {},
        engines=await engine_states(redis, keys, version, kept, version == standing.current),
        more_takes=kept.more_takes if kept else 0,
    )


async def where_versions_stand(redis: Redis, record: RunRecord, runs_folder: Path) -> Standing:
    keys, branch = Keys(record.run), record.settings.branch
    counters, lineage = await Ledger(redis, keys).counters(), await read_lineage(redis, keys)
    kept = await what_is_kept(record, runs_folder, lineage, counters)
    first, newest = branch.step if branch else 0, counters.get("step", 0)
    return Standing(first, newest, counters.get("weight_version"), lineage, kept)


def _summary(version: int, facts: StepFacts | None, kept: VersionRecord | None, standing: Standing) -> VersionSummary:
    facts, takes = facts or StepFacts(), list(kept.takes.values()) if kept else []
    done = sum(take.state == "done" for take in takes)
    return VersionSummary(
        version=version,
        parent=None if version == standing.first else standing.lineage.parent(version),
        step=version,
        checksum=kept.checksum if kept else None,
        groups=len(facts.group_ids),
        attempts=len(facts.lengths),
        tokens=sum(facts.lengths),
        metrics={name: facts.metrics[name] for name in KEY_METRICS if name in facts.metrics},
        committed=facts.committed,
        announced=kept.announced if kept else None,
        seconds=kept.seconds.get("total") if kept else None,
        engines_done=done + (kept.more_takes if kept else 0),
        engines_failed=len(takes) - done,
        is_current=version == standing.current,
        left_at=standing.lineage.left_at(standing.newest, version),
        can_be_had=None if standing.available is None else version in standing.available,
    )
