"""One announced version -> the engines that take part, each told its rank; then what became of them."""

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from redis.asyncio import Redis

from services.trainer.rendezvous import Member
from shared.enrolment import Part, await_answer, read_parts, write_parts
from shared.memory_handle import MemoryHandle
from shared.runs import present
from shared.topology import Keys

LOOK_S = 0.25
"""Seconds from one look at who is up to the next."""


@dataclass(frozen=True, slots=True)
class Gathering:
    """The engines that answered an announcement."""

    waiting: dict[str, Part]
    """Those that need the version, in the order of their ranks."""
    holding: dict[str, Part]
    """Those that have it already."""

    @property
    def members(self) -> tuple[Member, ...]:
        return tuple(Member(name, part.incarnation, part.ranks) for name, part in self.waiting.items())

    @property
    def joined(self) -> frozenset[str]:
        """The process groups that they are in now; one name if they could go on with it."""
        return frozenset(part.group for part in self.waiting.values())


class Engines:
    """The engines of one run, through what they write to Redis."""

    def __init__(self, redis: Redis, run: str) -> None:
        self._redis, self._run, self._keys = redis, run, Keys(run)
        self._silent: set[str] = set()
        """Engines that did not answer last time: nobody waits for them again before they have."""
        self._up, self._looked = set[str](), 0.0

    def expect_nothing_of(self, name: str) -> None:
        """Do not wait for this engine again until it has answered an announcement."""
        self._silent.add(name)

    async def up(self) -> set[str]:
        """Names of the engines that are healthy and want weights."""
        return set(await present(self._redis, self._run, "engine-up"))

    async def lacking(self, version: int, checksum: str) -> set[str]:
        """Those that are up and have not proven this version."""
        parts = await read_parts(self._redis, self._keys, version)
        return {name for name in await self.up() if not _holds(parts.get(name), checksum)}

    async def gather(self, version: int, checksum: str, announcement: str, until: float) -> Gathering:
        """Wait until every engine that is up has answered; at `until` (epoch seconds) go on with those that did."""
        self._looked = 0.0
        while True:
            up = await self._up_lately()
            parts = await read_parts(self._redis, self._keys, version)
            answers = {name: part for name, part in sorted(parts.items()) if part.announcement == announcement}
            self._silent -= answers.keys()
            if (late := time.time() > until) or up - self._silent <= answers.keys():
                self._silent |= (up - answers.keys()) if late else set()
                holding = {name: part for name, part in answers.items() if _holds(part, checksum)}
                waiting = {name: part for name, part in answers.items() if part.state == "enrolled"}
                return Gathering(waiting, holding)
            await self.wait(version, min(LOOK_S, until - time.time()))

    async def wait(self, version: int, deadline_s: float) -> None:
        """Return as soon as an engine has answered since the last time, or after `deadline_s` seconds."""
        await await_answer(self._redis, self._keys, version, deadline_s)

    async def start(
        self,
        version: int,
        gathering: Gathering,
        group: str,
        lent: Mapping[str, list[list[MemoryHandle]]] | None = None,
    ) -> None:
        """Tell every waiting engine to begin, and with which ranks in a group, or where the version lies."""
        world_size = 1 + sum(part.ranks for part in gathering.waiting.values())
        parts: dict[str, Part] = {}
        first_rank = 1
        for name, part in gathering.waiting.items():
            go = replace(part, state="go", group=group, first_rank=first_rank, world_size=world_size)
            parts[name] = replace(go, lent=lent[name]) if lent else go
            first_rank += part.ranks
        await write_parts(self._redis, self._keys, version, parts)

    async def ended(self, version: int, announcement: str, names: Collection[str]) -> dict[str, Part]:
        """Those of `names` whose part is over: done, failed, restarted meanwhile, or gone."""
        parts = await read_parts(self._redis, self._keys, version)
        up = await self._up_lately()
        over: dict[str, Part] = {}
        for name in names:
            part = parts.get(name)
            if part is None:
                continue
            if part.state != "go" or part.announcement != announcement:
                over[name] = part
            elif name not in up:
                over[name] = replace(part, state="failed", reason="the engine died")
        return over

    async def _up_lately(self) -> set[str]:
        """As of a moment ago: a look at every answer would be a look too many."""
        if time.monotonic() - self._looked > LOOK_S:
            self._up, self._looked = await self.up(), time.monotonic()
        return self._up


def _holds(part: Part | None, checksum: str) -> bool:
    return part is not None and part.state == "done" and part.checksum == checksum
