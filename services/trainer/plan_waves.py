"""Engines that wait for a version, and groups that are there -> waves: which engines are paused together, in order."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from services.trainer.gather_engines import Gathering
from services.trainer.rendezvous import Member


@dataclass(frozen=True, slots=True)
class Wave:
    """Engines that take a version at the same time, while those of later waves serve their old one."""

    gathering: Gathering
    group: str = ""
    """The group that they all are in; empty if they need a new one."""


def plan_waves(
    gathering: Gathering, limit: int, groups: Mapping[str, tuple[Member, ...]], first: Collection[str] = ()
) -> list[Wave]:
    """Spread the waiting engines over as few waves as `limit` allows, and keep to the groups that are there.

    Args:
        limit: most engines in a wave; 0 for all of them.
        groups: members of each group by its name. An engine is in one of them at most.
        first: engines to be served before others: they may be paused already.
    """
    members = {member.name: member for member in gathering.members}
    most = limit or max(len(members), 1)
    fitting = [name for name, of in groups.items() if len(of) <= most and _is_whole(name, of, members, gathering)]
    if len(members) <= most:
        fitting = [name for name in fitting if len(groups[name]) == len(members)]
    waves = [Wave(gathering.only([member.name for member in groups[name]]), name) for name in fitting]
    rest = sorted(members.keys() - {name for wave in waves for name in wave.gathering.waiting})
    rest.sort(key=lambda name: name not in first)
    waves += [Wave(gathering.only(rest[at : at + most])) for at in range(0, len(rest), most)]
    return sorted(waves, key=lambda wave: not wave.gathering.waiting.keys() & set(first))


def _is_whole(name: str, of: tuple[Member, ...], waiting: Mapping[str, Member], gathering: Gathering) -> bool:
    """All members of a group wait, in the same life, and still are in it."""
    return all(waiting.get(each.name) == each and gathering.waiting[each.name].group == name for each in of)
