"""Which trainer wrote which version, as what -> the name of its folder, and which folders nobody needs any more."""

import re
import secrets
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

PATTERN = re.compile(r"v(\d+)-(full|delta)-e(\d+)-(\d+)-([0-9a-f]{8})")


@dataclass(frozen=True, slots=True, order=True)
class VersionName:
    """Ordered as they were written. The last part tells apart what is equal in all others, when Redis lost an epoch."""

    epoch: int
    """Of the trainer: each that takes a run over has a larger one."""
    number: int
    """Of the folder among those of this trainer."""
    version: int
    kind: str
    nonce: str = field(default_factory=lambda: secrets.token_hex(4))

    def __str__(self) -> str:
        return f"v{self.version:06d}-{self.kind}-e{self.epoch}-{self.number:06d}-{self.nonce}"

    @classmethod
    def parse(cls, name: str) -> "VersionName | None":
        """None if no version has such a name."""
        found = PATTERN.fullmatch(name)
        if found is None:
            return None
        version, kind, epoch, number, nonce = found.groups()
        return cls(int(epoch), int(number), int(version), kind, nonce)


def superfluous(
    found: Mapping[VersionName, bool], mine: Sequence[VersionName], keep: int, read: Collection[int]
) -> list[VersionName]:
    """Folders to delete: all but the newest, what engines read now, and what either builds on.

    What a later trainer wrote is never one of them: it may have taken this run over a moment ago.

    Args:
        found: what is in the store, and whether it is whole.
        mine: what this trainer wrote, oldest first; these count as the newest.
        keep: how many are kept, beside what they build on.
        read: versions that an engine may be reading.
    """
    epoch = mine[-1].epoch
    others = sorted(name for name, whole in found.items() if whole and name not in mine and name.epoch <= epoch)
    kept = _with_bases(mine, keep, read) | _with_bases(others, max(keep - len(mine), 0), read)
    return sorted(name for name in found if name.epoch <= epoch and name not in kept)


def _with_bases(names: Sequence[VersionName], keep: int, read: Collection[int]) -> set[VersionName]:
    """The last `keep` of one or more chains, those that are read, and all before them back to a full one."""
    kept, is_base, first = set[VersionName](), False, len(names) - keep
    for at in reversed(range(len(names))):
        is_base = is_base or at >= first or names[at].version in read
        if is_base:
            kept.add(names[at])
        is_base = is_base and names[at].kind != "full"
    return kept
