"""A published weight version -> what Redis keeps of it: its checksum, and which engines took it, when and how.

What the step that made it trained is in the steps stream; this is the rest. The trainer alone writes it, with its
epoch, and its announcement of a version is in it in the same moment. It is small whatever the number of engines, never
expires, and leaves with the run.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast

from pydantic import TypeAdapter
from redis.asyncio import Redis

from shared.messages import WeightVersion
from shared.topology import Keys

MOST_TAKES = 32
"""Engines that are listed; of more, the fastest that took the version without a failure are only counted."""
MOST_REPLACED = 8


@dataclass(frozen=True, slots=True)
class Take:
    """What became of a version at one engine."""

    state: Literal["done", "failed"]
    time: float
    """When, in seconds since the epoch."""
    incarnation: str = ""
    """done: which life of the engine's process."""
    seconds: dict[str, float] = field(default_factory=dict[str, float])
    """done: by phase, as the engine measured them."""
    unverified: int = 0
    """done: tensors whose hash could not be compared; -1 for all."""
    failures: int = 0
    """Tries that failed, also before one that did not."""
    reason: str = ""
    """Of the last failure."""

    @property
    def total_s(self) -> float:
        return self.seconds.get("total", 0.0)


@dataclass(frozen=True, slots=True)
class VersionRecord:
    """One published version. A number has other weights again only where Redis lost its step, or on other kernels."""

    checksum: str
    backend: str
    """How it travelled, such as gloo, nccl or files."""
    announced: float
    """When these weights were first announced under this number, in seconds since the epoch."""
    announcements: int = 1
    """How often; again for engines that came late, and by each trainer that took the run over at this version."""
    nbytes: int = 0
    seconds: dict[str, float] = field(default_factory=dict[str, float])
    """Of its last publication, by phase, as the trainer measured them; empty until one has ended."""
    takes: dict[str, Take] = field(default_factory=dict[str, Take])
    """By engine."""
    more_takes: int = 0
    """Takes that are not listed."""
    replaced: list[str] = field(default_factory=list[str])
    """Checksums that were announced under this number before, oldest first."""


_RECORD: TypeAdapter[VersionRecord] = TypeAdapter(VersionRecord)


def encode_record(record: VersionRecord) -> bytes:
    return _RECORD.dump_json(record, exclude_defaults=True)


async def read_record(redis: Redis, keys: Keys, version: int) -> VersionRecord | None:
    """What is kept of one version; None if it was never announced."""
    return (await read_records(redis, keys, [version])).get(version)


async def newest_record(redis: Redis, keys: Keys) -> int:
    """The newest version that was ever announced; -1 if none was."""
    return max(map(int, cast(list[bytes], await redis.hkeys(keys.versions))), default=-1)


async def read_records(redis: Redis, keys: Keys, versions: Sequence[int]) -> dict[int, VersionRecord]:
    """What is kept of these versions, as far as they were announced."""
    if not versions:
        return {}
    names = [str(version) for version in versions]
    raw = cast(list[bytes | None], await cast(Any, redis.hmget(keys.versions, names)))
    pairs = zip(versions, raw, strict=True)
    return {version: _RECORD.validate_json(one) for version, one in pairs if one is not None}


def with_announcement(record: VersionRecord | None, version: WeightVersion, now: float) -> VersionRecord:
    """The record of a version that is announced now; other weights under the same number begin anew."""
    backend = version.rendezvous.backend
    if record is not None and record.checksum == version.checksum:
        return replace(record, backend=backend, announcements=record.announcements + 1)
    replaced = [*record.replaced, record.checksum][-MOST_REPLACED:] if record is not None else []
    return VersionRecord(version.checksum, backend, now, replaced=replaced)


def with_takes(record: VersionRecord, takes: Mapping[str, Take]) -> VersionRecord:
    """The record after what became of the version at these engines."""
    merged = dict(record.takes)
    for engine, take in takes.items():
        merged[engine] = _merge(merged.get(engine), take)
    remarkable = sorted(merged, key=lambda name: _order(merged[name]))
    kept = {name: merged[name] for name in sorted(remarkable[:MOST_TAKES])}
    return replace(record, takes=kept, more_takes=record.more_takes + len(merged) - len(kept))


def _merge(old: Take | None, new: Take) -> Take:
    """An engine that answers a repeated announcement with what it holds has not taken it again."""
    if old is None:
        return new
    failures, reason = old.failures + new.failures, new.reason or old.reason
    if old.state == new.state == "done" and old.incarnation == new.incarnation:
        return replace(old, failures=failures, reason=reason)
    return replace(new, failures=failures, reason=reason)


def _order(take: Take) -> tuple[bool, bool, float]:
    return take.state == "done", not take.failures, -take.total_s
