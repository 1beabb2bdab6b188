"""The newest announcement of a run and what engines make of it -> the update as the REST API tells it."""

from dataclasses import asdict
from typing import Any, cast

from redis.asyncio import Redis

from services.gateway.weights.engine_states import engine_states
from shared.errors import WireError
from shared.messages import Codec, WeightVersion
from shared.rollback import read_rollback
from shared.topology import WEIGHTS, Keys
from shared.version_ledger import read_record
from shared.weights_answers import RollbackAnswer, UpdateStatus


async def describe_update(redis: Redis, run: str) -> UpdateStatus | None:
    """None where no version was announced, or the announcement cannot be read by this gateway."""
    keys, codec = Keys(run), Codec[WeightVersion](WeightVersion)
    entries = cast(list[Any], await redis.xrevrange(keys.stream(WEIGHTS), count=1))
    if not entries:
        return None
    ((entry_id, fields),) = entries
    try:
        announced = codec.decode(fields[b"m"])
    except WireError:
        return None
    version, meeting = announced.version, announced.rendezvous
    states = await engine_states(redis, keys, version, await read_record(redis, keys, version), is_current=True)
    up = [one for one in states if one.up]
    return UpdateStatus(
        run=run,
        version=version,
        checksum=announced.checksum,
        announced=int(entry_id.partition(b"-")[0]) / 1000,
        enrol_until=meeting.enrol_until,
        done_until=meeting.done_until,
        complete=bool(up) and all(one.state == "done" for one in up),
        engines=states,
        rollback=await _rollback(redis, keys, version),
    )


async def _rollback(redis: Redis, keys: Keys, newest: int) -> RollbackAnswer | None:
    """One whose weights engines have not been offered yet."""
    found = await read_rollback(redis, keys)
    waits = found is not None and (found.state == "asked" or (found.step or 0) > newest)
    return RollbackAnswer(run=keys.run, **asdict(found)) if found is not None and waits else None
