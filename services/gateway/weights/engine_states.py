"""What engines say about a version, and what the ledger of versions keeps of it -> the state of each engine."""

import json
import time
from typing import Any, cast

from redis.asyncio import Redis

from shared.runs import present
from shared.topology import Keys
from shared.version_ledger import Take, VersionRecord
from shared.weights_answers import EngineState

ENDS = ("done", "failed")


async def engine_states(
    redis: Redis, keys: Keys, version: int, record: VersionRecord | None, is_current: bool
) -> list[EngineState]:
    """Of every engine that had to do with the version; of the current one also those that are up and silent."""
    takes = record.takes if record else {}
    raw = cast(dict[bytes, bytes], await redis.hgetall(keys.enrolled(version)))
    parts: dict[str, dict[str, Any]] = {name.decode(): json.loads(part) for name, part in raw.items()}
    up = set(await present(redis, keys.run, "engine-up")) if is_current else set[str]()
    checksum = record.checksum if record else ""
    found: list[EngineState] = []
    for engine in sorted(takes.keys() | parts.keys() | up):
        take, part = takes.get(engine), parts.get(engine)
        if part is not None:
            state = _of_part(engine, part, checksum)
        else:
            state = _of_take(engine, take) if take else EngineState(engine=engine, state="silent", phases={})
        found.append(_complete(state, take, engine in up if is_current else None))
    return found


def _of_part(engine: str, part: dict[str, Any], checksum: str) -> EngineState:
    """States that this gateway does not know are told as they are."""
    state, since, phases = str(part["state"]), float(part.get("since") or 0) or None, part.get("seconds") or {}
    if state == "done" and part.get("checksum", checksum) != checksum:
        state = "outdated"
    return EngineState(
        engine=engine,
        state=state,
        since=since,
        seconds=phases.get("total") if state in ENDS else time.time() - since if since else None,
        phases=phases,
        unverified=int(part.get("unverified") or 0),
        failures=int(state == "failed"),
        reason=str(part.get("reason") or ""),
    )


def _of_take(engine: str, take: Take) -> EngineState:
    seconds, phases = take.seconds.get("total"), take.seconds
    return EngineState(
        engine=engine, state=take.state, since=take.time, seconds=seconds, phases=phases, unverified=take.unverified
    )


def _complete(state: EngineState, take: Take | None, up: bool | None) -> EngineState:
    known = {"failures": take.failures, "reason": state.reason or take.reason} if take else {}
    return state.model_copy(update={"up": up, **known})
