"""One announced version -> the engines that take part, each told its rank; then what became of them."""

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from redis.asyncio import Redis

from services.trainer.rendezvous import Member
from shared.enrolment import AT_WORK, Part, Word, await_parts, read_parts, say, write_parts
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

    def only(self, names: Collection[str]) -> "Gathering":
        """Those of `names` that wait."""
        return Gathering({name: part for name, part in self.waiting.items() if name in names}, {})


class Engines:
    """The engines of one run, through what they write to Redis."""

    def __init__(self, redis: Redis, run: str) -> None:
        self._redis, self._run, self._keys = redis, run, Keys(run)
        self._silent: set[str] = set()
        """Engines that did not answer last time: nobody waits for them again before they have."""
        self.given_up: set[str] = set()
        """Engines that are given nothing for now: they failed too often."""
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
        self._looked, answers = 0.0, dict[str, Part]()
        while True:
            up = await self._up_lately()
            if awaited := up - self._silent - answers.keys():
                wait_s = min(LOOK_S, until - time.time())
                parts = await await_parts(self._redis, self._keys, version, awaited, wait_s, everybodys=True)
            else:
                parts = await read_parts(self._redis, self._keys, version)
            answers = {name: part for name, part in sorted(parts.items()) if part.announcement == announcement}
            self._silent -= answers.keys()
            if (late := time.time() > until) or up - self._silent <= answers.keys():
                self._silent |= (up - answers.keys()) if late else set()
                holding = {name: part for name, part in answers.items() if _holds(part, checksum)}
                waiting = {name: part for name, part in answers.items() if part.state == "enrolled"}
                return Gathering({n: part for n, part in waiting.items() if n not in self.given_up}, holding)

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
            place = replace(part, group=group, first_rank=first_rank, world_size=world_size)
            go = replace(place, state="go", since=0)
            parts[name] = replace(go, lent=lent[name]) if lent else go
            first_rank += part.ranks
        await write_parts(self._redis, self._keys, version, parts)

    async def at_work(self, versions: Collection[int]) -> set[int]:
        """Those versions that an engine which is up was told to take, and has neither taken nor given up."""
        up = await self.up()
        parts = {version: await read_parts(self._redis, self._keys, version) for version in versions}
        return {v for v, found in parts.items() if any(found[name].state in AT_WORK for name in found.keys() & up)}

    async def say(self, version: int, names: Collection[str], word: Word) -> None:
        """Tell engines that are ready, or get ready, what becomes of the version."""
        await say(self._redis, self._keys, version, names, word)

    async def look(
        self, version: int, announcement: str, names: Collection[str], wait_s: float = LOOK_S
    ) -> dict[str, Part]:
        """The parts of `names` once one of them has answered since the last time, or `wait_s` seconds later.

        `failed` where an engine restarted meanwhile, or is gone.
        """
        parts = await await_parts(self._redis, self._keys, version, names, wait_s)
        up = await self._up_lately()
        if any(name in parts and parts[name].state in AT_WORK for name in set(names) - up):
            up = await self._up_lately(0)  # it may have come up since
        found: dict[str, Part] = {}
        for name, part in ((name, parts[name]) for name in names if name in parts):
            found[name] = part
            if part.state == "enrolled" or (part.announcement != announcement and part.state != "done"):
                found[name] = replace(part, state="failed", reason="the engine started anew")
            elif part.state in AT_WORK and name not in up:
                found[name] = replace(part, state="failed", reason="the engine died, or does not answer")
        return found

    async def ended(
        self, version: int, announcement: str, names: Collection[str], wait_s: float = LOOK_S
    ) -> dict[str, Part]:
        """As `look`, those whose part is over: done, failed, restarted meanwhile, or gone."""
        parts = await self.look(version, announcement, names, wait_s)
        return {name: part for name, part in parts.items() if part.state not in AT_WORK}

    async def all_ended(self, version: int, announcement: str, names: Collection[str], until: float) -> dict[str, Part]:
        """The parts of `names` once all are over; at `until` (epoch seconds) of those that are."""
        while True:
            parts = await self.ended(version, announcement, names)
            if len(parts) == len(names) or time.time() >= until:
                return parts

    async def _up_lately(self, age_s: float = LOOK_S) -> set[str]:
        """As of a moment ago: a look at every answer would be a look too many."""
        if time.monotonic() - self._looked > age_s:
            self._up, self._looked = await self.up(), time.monotonic()
        return self._up


def _holds(part: Part | None, checksum: str) -> bool:
    return part is not None and part.state == "done" and part.checksum == checksum
