"""A run's streams, state and evaluations -> server-sent events, resumable at any event, until the run has ended."""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import asdict, replace
from typing import Any, cast

from redis.asyncio import Redis

from services.gateway.bookmark import Bookmark
from services.gateway.describe_run import describe_evaluation
from services.gateway.release_evaluation import evaluated_versions
from shared.errors import WireError
from shared.messages import Codec, Event, StepCommit, StepRecord, WeightVersion
from shared.redis_connection import UNREACHABLE
from shared.runs import ENDED, RunRecord, Runs
from shared.topology import EVENTS, STEPS, WEIGHTS, Keys

BLOCK_MS = 500
PAGE = 100
PING_S = 15.0
SOURCES = {spec.name: spec for spec in (EVENTS, STEPS, WEIGHTS)}
Entry = tuple[str, str, dict[bytes, bytes]]
"""(stream name, entry id, fields)."""


class EventFeed:
    """What one client is told about one run. `mark` is how far it is; without `follow` it waits for nothing."""

    def __init__(self, redis: Redis, run: str, mark: Bookmark, closing: asyncio.Event, follow: bool = True) -> None:
        self._redis, self._run, self._keys = redis, run, Keys(run)
        self._mark, self._closing, self._follow = mark, closing, follow

    async def stream(self) -> AsyncGenerator[str]:
        """Events behind the mark; the change to the final state is the last one.

        The stream ends early, to be resumed by the client, when Redis goes away or the gateway stops.
        """
        quiet_since = time.monotonic()
        try:
            while not self._closing.is_set() and (record := await Runs(self._redis).get(self._run)) is not None:
                async for text in self._news(record):
                    quiet_since = time.monotonic()
                    yield text
                if record.state in ENDED or not self._follow:
                    return
                if time.monotonic() - quiet_since > PING_S:
                    quiet_since = time.monotonic()
                    yield ": still here\n\n"
        except UNREACHABLE:
            return

    async def _news(self, record: RunRecord) -> AsyncIterator[str]:
        """What happened since: all of it where no more is waited for, else one page, waited for up to BLOCK_MS."""
        ended = record.state in ENDED
        is_last = ended or not self._follow
        if not ended and record.state != self._mark.state:
            yield self._state(record)
        while entries := await self._entries(None if is_last else BLOCK_MS):
            for name, entry_id, fields in entries:
                self._mark = replace(self._mark, **{name: entry_id})
                if text := self._entry(SOURCES[name].message, fields):
                    yield text
            if not is_last:
                break
        async for text in self._evaluations(set(record.settings.eval.datasets)):
            yield text
        if ended and record.state != self._mark.state:
            yield self._state(record)

    async def _entries(self, block_ms: int | None) -> list[Entry]:
        """New entries of the three streams in the order of their times."""
        names = {self._keys.stream(spec): name for name, spec in SOURCES.items()}
        after: dict[Any, Any] = {key: getattr(self._mark, name) for key, name in names.items()}
        answer = cast(list[Any], await self._redis.xread(after, count=PAGE, block=block_ms))
        found = [(names[key.decode()], entry_id.decode(), fields) for key, page in answer for entry_id, fields in page]
        return sorted(found, key=lambda entry: [int(part) for part in entry[1].split("-")])

    async def _evaluations(self, wanted: set[str]) -> AsyncIterator[str]:
        """One event for each dataset, once a version's evaluation is complete."""
        for version in await evaluated_versions(self._redis, self._keys):
            if version <= self._mark.evaluated:
                continue
            evaluations = await describe_evaluation(self._redis, self._keys, version)
            if not {one.dataset for one in evaluations if one.complete} >= wanted:
                continue
            for one in evaluations:
                if one is evaluations[-1]:  # a client cut off before the last one gets all of them again
                    self._mark = replace(self._mark, evaluated=version)
                yield self._format("evaluation", one.model_dump())

    def _entry(self, message: Any, fields: dict[bytes, bytes]) -> str:
        """The event of an entry; empty where the entry is none of a client's business."""
        codec: Codec[Event | StepRecord | WeightVersion] = Codec(message)
        try:
            body = codec.decode(fields.get(b"m", b""))
        except WireError as error:
            body = Event(time.time(), "gateway", "unreadable_entry", {"error": str(error)})
        match body:
            case Event():
                return self._format("event", asdict(body))
            case StepCommit(step, version, metrics):
                return self._format("step", {"step": step, "weight_version": version, "metrics": metrics})
            case WeightVersion(version, step):
                return self._format("weights", {"version": version, "step": step, "checksum": body.checksum})
            case _:
                return ""

    def _state(self, record: RunRecord) -> str:
        self._mark = replace(self._mark, state=record.state)
        return self._format("state", {"run": record.run, "state": record.state, "reason": record.reason})

    def _format(self, event: str, data: dict[str, Any]) -> str:
        text = json.dumps(data, ensure_ascii=False, default=str)
        return f"event: {event}\nid: {self._mark}\ndata: {text}\n\n"
