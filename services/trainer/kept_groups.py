"""Engines of a party -> the process group with them: the one that they are in, or a new one, kept for the next version.

An engine is in one group at a time, and shares it only with its party.
"""

import asyncio
from collections.abc import Collection, Iterable

from services.trainer.rendezvous import Communicator, MeetingPoint, Member, forget, in_thread


class KeptGroups:
    """The groups of one run, and the store at which all of them find themselves."""

    def __init__(self, host: str) -> None:
        """`host`: the address by which engines reach this process."""
        self._host = host
        self._meeting: MeetingPoint | None = None
        self._groups: dict[str, Communicator] = {}

    def meeting(self) -> MeetingPoint:
        """The store, open."""
        self._meeting = self._meeting or MeetingPoint(self._host)
        return self._meeting

    @property
    def members(self) -> dict[str, tuple[Member, ...]]:
        """By the group's name."""
        return {name: group.members for name, group in self._groups.items()}

    def __getitem__(self, name: str) -> Communicator:
        return self._groups[name]

    async def connect(self, name: str, members: tuple[Member, ...], backend: str, wait_s: float) -> Communicator:
        """Make a group with engines that were told its name; they leave the ones that they were in.

        Raises:
            RuntimeError: they did not all join within `wait_s` seconds.
        """
        joining = {member.name for member in members}
        for old, of in self.members.items():
            if joining & {member.name for member in of}:
                self.drop(old)
        meeting = self.meeting()
        group = await in_thread(lambda: Communicator(meeting, name, members, backend, wait_s))
        self._groups[name] = group
        return group

    def meet_anew(self, failures: Iterable[RuntimeError]) -> None:
        """Set engines free that wait at the store for groups that could not be made; nobody else may be on the way."""
        for failure in failures:
            forget(failure)
            if self._meeting is not None:
                self._meeting.close()
            self._meeting = None

    def keep_only(self, present: Collection[Member]) -> None:
        """Drop the groups of which a member is gone: they will never be whole again."""
        for name, of in self.members.items():
            if not set(of) <= set(present):
                self.drop(name)

    def drop(self, name: str) -> None:
        """Break a group up, with whatever is under way in it."""
        group = self._groups.pop(name, None)
        if group is not None:
            abort(group)

    def drop_all(self) -> None:
        for name in list(self._groups):
            self.drop(name)


def abort(group: Communicator) -> None:
    """In a thread of its own: breaking a group up may block for as long as somebody is stuck in it."""
    in_thread(group.abort).add_done_callback(asyncio.Future.exception)
