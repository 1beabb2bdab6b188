"""The dead letters of a run -> a list, one entry looked into, groups sent again, letters thrown away."""

import re
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, is_dataclass
from typing import Any, cast

import numpy as np
from redis.asyncio import Redis

from services.gateway.refusals import Refusal
from shared.errors import RunConflict, WireError
from shared.ledger_answers import DeadEntry, DeadLetterAnswer, DeadLetterList, Discarded, Redriven
from shared.messages import Codec, DeadLetter, Event
from shared.runs import ENDED, RunRecord
from shared.scripts import Ledger
from shared.topology import DEAD, STREAMS, Keys

PAGE = 100
HEX_BYTES = 64
ENTRY_ID = re.compile(r"\d{1,20}-\d{1,20}")
SPECS = {spec.name: spec for spec in STREAMS}
Letters = list[tuple[str, DeadLetter]]


class DeadLetters:
    """The dead letters of one run."""

    def __init__(self, redis: Redis, record: RunRecord) -> None:
        self._redis, self._record, self._keys = redis, record, Keys(record.run)
        self._ledger, self._stream = Ledger(redis, self._keys), self._keys.stream(DEAD)
        self._codec: Codec[DeadLetter] = Codec(DeadLetter)

    async def newest(self, limit: int) -> DeadLetterList:
        """The newest letters, newest first."""
        entries = cast(list[Any], await self._redis.xrevrange(self._stream, count=limit))
        kept = await self._kept()
        letters = [self._describe(entry_id, letter, kept) for entry_id, letter in self._decoded(entries)]
        return DeadLetterList(letters=letters, total=await self._redis.xlen(self._stream))

    async def show(self, entry_id: str) -> DeadEntry:
        """Refusal 404 if there is no such letter."""
        found = await self._read([entry_id]) if ENTRY_ID.fullmatch(entry_id) else []
        if not found:
            raise Refusal(404, f"run {self._record.run} has no dead letter {entry_id!r}; list them first")
        letter = found[0][1]
        entry, error = decode_entry(letter)
        told = self._describe(entry_id, letter, await self._kept()).model_dump()
        return DeadEntry(
            **told, entry=entry, hex="" if entry else letter.entry[:HEX_BYTES].hex(" "), decode_error=error
        )

    async def redrive(self, groups: Iterable[int] | None) -> Redriven:
        """Send the letters of these groups, or of all, to their streams again, and take back the groups' drops.

        Raises:
            RunConflict: the run has ended, and nobody would take them.
        """
        if self._record.state in ENDED:
            raise RunConflict(f"run {self._record.run} has {self._record.state}; nobody would take what is sent again")
        index, kept = await self._index(), await self._kept()
        wanted = sorted(index.keys() if groups is None else set(groups))
        done, refused = list[int](), dict[str, str]()
        for group_id in wanted:
            letters = await self._read(index.get(group_id, []))
            why_not = self._refuse(group_id, letters, kept)
            event = Event(time.time(), "gateway", "redriven", {"group": group_id, "letters": len(letters)})
            if not why_not and not await self._ledger.redrive(group_id, letters, event):
                why_not = "another request sent it again or discarded it"
            if why_not:
                refused[f"group {group_id}"] = why_not
            else:
                done.append(group_id)
        if groups is None:
            refused |= {f"letter {entry_id}": _NO_GROUP for entry_id in await self._without_group()}
        return Redriven(groups=done, refused=refused)

    async def discard(self, groups: Iterable[int], ids: Iterable[str], everything: bool) -> Discarded:
        """Delete letters with all letters of their groups: a group that lacks one could never be complete again.

        Refusal 404 if one of the ids is not there.
        """
        index, alone = await self._index(), await self._without_group()
        wanted = set(index if everything else groups)
        letters: set[str] = set(alone) if everything else set()
        for entry_id in ids:
            owner = next((group_id for group_id, its in index.items() if entry_id in its), None)
            if owner is not None:
                wanted.add(owner)
            elif entry_id in alone:
                letters.add(entry_id)
            else:
                raise Refusal(404, f"run {self._record.run} has no dead letter {entry_id!r}; list them first")
        count = await self._ledger.discard(None, sorted(letters)) if letters else 0
        for group_id in sorted(wanted & index.keys()):
            count += await self._ledger.discard(group_id, index[group_id])
        return Discarded(letters=count)

    def _refuse(self, group_id: int, letters: Letters, kept: set[int]) -> str:
        if not letters:
            return "it has no dead letters"
        return next((why for _, letter in letters if (why := self._why_not(letter, kept))), "")

    def _why_not(self, letter: DeadLetter, kept: set[int]) -> str:
        if letter.group_id is None:
            return _NO_GROUP
        if self._record.state in ENDED:
            return f"the run has {self._record.state}"
        if letter.evaluation:
            return "its group is one of an evaluation, which counts it as dropped and goes on without it"
        if not letter.entry:
            return "its bytes were too many to be kept"
        if letter.group_id not in kept:
            return "its group is not dropped as dead: it was decided in another way"
        return ""

    def _describe(self, entry_id: str, letter: DeadLetter, kept: set[int]) -> DeadLetterAnswer:
        why_not = self._why_not(letter, kept)
        return DeadLetterAnswer(
            id=entry_id,
            stream=letter.stream,
            group_id=letter.group_id,
            error=letter.error,
            deliveries=letter.deliveries,
            time=letter.time,
            bytes=len(letter.entry),
            redrivable=not why_not,
            why_not=why_not,
        )

    async def _kept(self) -> set[int]:
        return {int(group_id) for group_id in await self._redis.smembers(self._keys.dead_groups)}

    async def _index(self) -> dict[int, list[str]]:
        """Group -> the ids of its letters, oldest first."""
        index = defaultdict[int, list[str]](list)
        for entry_id, group_id in await self._all():
            if group_id is not None:
                index[group_id].append(entry_id)
        return index

    async def _without_group(self) -> list[str]:
        return [entry_id for entry_id, group_id in await self._all() if group_id is None]

    async def _all(self) -> list[tuple[str, int | None]]:
        """Ids and groups of all letters; what they hold may be more than fits here."""
        found, start = list[tuple[str, int | None]](), "-"
        while page := cast(list[Any], await self._redis.xrange(self._stream, start, count=PAGE)):
            found += [(entry_id, letter.group_id) for entry_id, letter in self._decoded(page)]
            start = f"({page[-1][0].decode()}"
        return found

    async def _read(self, entry_ids: Iterable[str]) -> Letters:
        async with self._redis.pipeline(transaction=False) as pipe:
            for entry_id in entry_ids:
                pipe.xrange(self._stream, entry_id, entry_id)
            pages = await pipe.execute()
        return self._decoded(entry for page in pages for entry in page)

    def _decoded(self, entries: Iterable[Any]) -> Letters:
        return [(entry_id.decode(), self._codec.decode(fields[b"m"])) for entry_id, fields in entries]


_NO_GROUP = "it names no group, so nothing waits for it; discard it"


def decode_entry(letter: DeadLetter) -> tuple[dict[str, Any] | None, str]:
    """The message that was given up, as JSON, or why it does not decode."""
    codec: Codec[Any] = Codec(SPECS[letter.stream].message)
    try:
        message = codec.decode(letter.entry)
    except WireError as error:
        return None, str(error)
    assert is_dataclass(message) and not isinstance(message, type), "every message is a dataclass"
    return {name: _shown(value) for name, value in asdict(message).items()}, ""


def _shown(value: Any) -> Any:
    return f"{len(value)} numbers" if isinstance(value, np.ndarray) else value
