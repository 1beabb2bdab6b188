"""The registry of runs in Redis: created -> queued -> starting -> running -> finished, stopped or failed."""

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, cast

from redis.asyncio import Redis
from redis.exceptions import WatchError

from shared.errors import RunConflict
from shared.run_settings import RunSettings
from shared.settings import restore
from shared.topology import ACTIVE, QUEUE, RUNS, Keys

State = Literal["queued", "starting", "running", "stopping", "finished", "stopped", "failed"]
ENDED: tuple[State, ...] = ("finished", "stopped", "failed")
HEARTBEAT_S = 2.0
"""Services renew their presence this often."""
PRESENCE_S = 10.0
"""A service that was silent for this long is not there."""

_ACTIVATE = """
local active = redis.call('GET', KEYS[1]) or ''
if redis.call('LINDEX', KEYS[2], 0) ~= ARGV[1] or active ~= ARGV[2] then return 0 end
redis.call('SET', KEYS[1], ARGV[1])
redis.call('LPOP', KEYS[2])
return 1
"""


@dataclass(frozen=True, slots=True)
class RunRecord:
    """One run as the registry knows it; times are seconds since the epoch."""

    run: str
    settings: RunSettings
    state: State
    reason: str
    created: float
    started: float | None
    ended: float | None

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "settings": self.settings.model_dump(mode="json")}


class Runs:
    """The registry, on one connection."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def create(
        self,
        settings: RunSettings,
        counters: Mapping[str, int] | None = None,
        cursor: Mapping[str, str] | None = None,
    ) -> RunRecord:
        """Register a run and put it in the queue; RunConflict if the name is taken.

        `counters` and `cursor` are where a run begins that does not begin at step 0.
        """
        keys, now = Keys(settings.name), time.time()
        record: dict[Any, Any] = {
            "settings": settings.model_dump_json(),
            "state": "queued",
            "reason": "",
            "created": str(now),
        }
        taken = not await self._redis.hsetnx(keys.record, "settings", record["settings"])
        if taken and await self._redis.hexists(keys.record, "state"):  # else its creator died before it was queued
            option = "--name " if settings.branch is not None else "--set name="
            raise RunConflict(
                f"run {settings.name} exists; choose another name, such as {option}{settings.name}-2, or once it has"
                f" ended delete it: `sluice run delete {settings.name}`"
            )
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.hset(keys.record, mapping=record)
            for key, begin in ((keys.counters, counters), (keys.cursor, cursor)):
                if begin:
                    pipe.hset(key, mapping=cast(dict[Any, Any], dict(begin)))
            pipe.zadd(RUNS, {settings.name: now})
            pipe.rpush(QUEUE, settings.name)
            await pipe.execute()
        return RunRecord(settings.name, settings, "queued", "", now, None, None)

    async def get(self, run: str) -> RunRecord | None:
        """The record of a run, or None if there is no such run."""
        raw = cast(dict[bytes, bytes], await self._redis.hgetall(Keys(run).record))
        if b"state" not in raw:
            return None
        fields = {name.decode(): value.decode() for name, value in raw.items()}
        return RunRecord(
            run=run,
            settings=restore(RunSettings, fields["settings"]),
            state=cast(State, fields["state"]),
            reason=fields["reason"],
            created=float(fields["created"]),
            started=float(fields["started"]) if "started" in fields else None,
            ended=float(fields["ended"]) if "ended" in fields else None,
        )

    async def list(self) -> list[RunRecord]:
        """All runs, oldest first."""
        names = cast(list[bytes], await self._redis.zrange(RUNS, 0, -1))
        records = [await self.get(name.decode()) for name in names]
        return [record for record in records if record is not None]

    async def move(self, run: str, expected: tuple[State, ...], state: State, reason: str = "") -> bool:
        """Change the state if it is one of `expected`; the first service to do so wins. False if it is not."""
        key = Keys(run).record
        async with self._redis.pipeline(transaction=True) as pipe:
            while True:
                try:
                    await pipe.watch(key)
                    current = cast(bytes | None, await pipe.hget(key, "state"))
                    if current is None or current.decode() not in expected:
                        return False
                    pipe.multi()
                    stamp = {"running": "started"}.get(state, "ended" if state in ENDED else "")
                    extra = {stamp: str(time.time())} if stamp else {}
                    pipe.hset(key, mapping={"state": state, "reason": reason, **extra})
                    await pipe.execute()
                    return True
                except WatchError:
                    continue

    async def fail(self, run: str, reason: str) -> bool:
        """End a run that has not ended yet, with the reason."""
        return await self.move(run, ("queued", "starting", "running", "stopping"), "failed", reason)

    async def active(self) -> RunRecord | None:
        """The run that this deployment serves now."""
        name = cast(bytes | None, await self._redis.get(ACTIVE))
        return await self.get(name.decode()) if name else None

    async def activate_next(self) -> RunRecord | None:
        """Take the oldest queued run as the active one if none is; called by every gateway, one of them does it."""
        current = await self.active()
        if current is not None and current.state == "queued":  # whoever activated it did not come to say so
            await self.move(current.run, ("queued",), "starting")
            return await self.active()
        if current is not None and current.state not in ENDED:
            return current
        name = cast(bytes | None, await self._redis.lindex(QUEUE, 0))
        if name is None:
            return None
        replaced = current.run if current else ""
        if await self._redis.eval(_ACTIVATE, 2, ACTIVE, QUEUE, name, replaced):
            await self.move(name.decode(), ("queued",), "starting")
        return await self.active()


async def announce(redis: Redis, run: str, member: str) -> None:
    """Say that `role/name` is ready for the run; repeated every HEARTBEAT_S seconds."""
    await redis.zadd(Keys(run).alive, {member: time.time()})


async def withdraw(redis: Redis, run: str, member: str) -> None:
    """Say that `role/name` is gone."""
    await redis.zrem(Keys(run).alive, member)


async def present(redis: Redis, run: str, role: str = "") -> list[str]:
    """Names of the services of a role (all roles: `role/name`) that are ready and were heard of lately."""
    members = cast(list[bytes], await redis.zrangebyscore(Keys(run).alive, time.time() - PRESENCE_S, "+inf"))
    names = sorted(member.decode() for member in members)
    return [name.removeprefix(f"{role}/") for name in names if name.startswith(f"{role}/")] if role else names


def dump(value: Any) -> str:
    """Compact JSON."""
    return json.dumps(value, separators=(",", ":"))
