"""Engines that wait for a version, and groups that are there -> waves: which engines are paused together, in order."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from services.trainer.gather_engines import Gathering
from services.trainer.rendezvous import Member


@dataclass(frozen=True, slots=True)
class Party:
    """Engines that take a version in one process group."""

    gathering: Gathering
    group: str = ""
    """The group that they all are in; empty if they need a new one."""


@dataclass
class Wave:
    """Engines that take a version at the same time, while those of later waves serve their old one."""

    parties: list[Party] = field(default_factory=list[Party])

    @property
    def gathering(self) -> Gathering:
        """Those of all parties."""
        return Gathering({n: part for each in self.parties for n, part in each.gathering.waiting.items()}, {})


def plan_waves(
    gathering: Gathering,
    limit: int,
    first: Collection[str] = (),
    together: int = 0,
    groups: Mapping[str, tuple[Member, ...]] | None = None,
) -> list[Wave]:
    """Spread the waiting engines over as few waves as `limit` allows, and keep to the groups that are there.

    Args:
        limit: most engines in a wave; 0 for all of them.
        first: engines to be served before others: they may be paused already.
        together: most engines in a party; 0 for as many as a wave has.
        groups: members of each group by its name. An engine is in one of them at most.
    """
    everybody = max(len(gathering.waiting), 1)
    limit = limit or everybody
    return _packed(_parties(gathering, min(together or limit, limit), groups or {}, first), limit)


def _parties(
    gathering: Gathering, most: int, groups: Mapping[str, tuple[Member, ...]], first: Collection[str]
) -> list[Party]:
    members = {member.name: member for member in gathering.members}
    fitting = [name for name, of in groups.items() if len(of) <= most and _is_whole(name, of, members, gathering)]
    if len(members) <= most:
        fitting = [name for name in fitting if len(groups[name]) == len(members)]
    parties = [Party(gathering.only([member.name for member in groups[name]]), name) for name in fitting]
    rest = sorted(members.keys() - {name for party in parties for name in party.gathering.waiting})
    rest.sort(key=lambda name: name not in first)
    parties += [Party(gathering.only(rest[at : at + most])) for at in range(0, len(rest), most)]
    return sorted(parties, key=lambda party: not party.gathering.waiting.keys() & set(first))


def _packed(parties: Iterable[Party], limit: int) -> list[Wave]:
    """Each party in the first wave that has room for it."""
    waves: list[Wave] = []
    for party in parties:
        size = len(party.gathering.waiting)
        room = next((wave for wave in waves if len(wave.gathering.waiting) + size <= limit), None)
        if room is None:
            waves.append(room := Wave())
        room.parties.append(party)
    return waves


def _is_whole(name: str, of: tuple[Member, ...], waiting: Mapping[str, Member], gathering: Gathering) -> bool:
    """All members of a group wait, in the same life, and still are in it."""
    return all(waiting.get(each.name) == each and gathering.waiting[each.name].group == name for each in of)
