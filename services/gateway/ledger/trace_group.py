"""The number of a group -> its lineage: prompt, attempts, events, step, and the weights that it trained."""

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from redis.asyncio import Redis

from services.gateway.ledger.find_entries import find_entries, find_events, find_step, is_committed
from services.gateway.ledger.place_groups import AGAIN_S
from services.gateway.refusals import Refusal
from shared.archive import archived_by, read_step
from shared.errors import RunRejected, WireError
from shared.ledger_answers import GroupState, Lineage, LineageAttempt, LineageEvent
from shared.messages import Attempt, Codec, Prompt
from shared.runs import RunRecord
from shared.topology import GROUPS, PROMPTS, ROLLOUTS, Keys
from shared.version_ledger import read_records

LOOKS = 8
"""How often a group that is in no place is looked for: it may be on its way from one to the next."""
LEFT = "its attempts have left Redis"


@dataclass(frozen=True, slots=True)
class _Marks:
    """The bits of one group, and its stored attempts."""

    settled: bool
    trained: bool
    dropped: bool
    evaluated: bool
    dead: bool
    attempts: dict[bytes, bytes]


@dataclass(frozen=True, slots=True)
class _Contents:
    """What is kept of a group, and where it was found."""

    attempts: list[Attempt]
    source: str
    note: str = ""


async def trace_group(redis: Redis, record: RunRecord, runs_folder: Path, group_id: int) -> Lineage:
    """Refusal 404 if no group of this number was released."""
    keys = Keys(record.run)
    groups = int(cast(bytes | None, await redis.hget(keys.counters, "next_group_id")) or 0)
    if group_id >= groups:
        raise Refusal(404, f"run {record.run} has released {groups} groups, counted from 0; there is no {group_id}")
    state, marks, prompt = await _locate(redis, keys, group_id)
    step = await find_step(redis, keys, group_id) if marks.trained else None
    committed = step is not None and await is_committed(redis, keys, step)
    events = await find_events(redis, keys, group_id)
    contents = await _contents(record, runs_folder / record.run, group_id, marks, prompt, step)
    reason = _reason(events) if marks.dropped else ""
    if reason == "dead":
        state = "dead"  # as the ledger counts it, also when nothing of it is kept for a re-drive
    sampled_by = sorted({version for attempt in contents.attempts for version, _ in attempt.weight_versions})
    made = [step] if committed and step is not None else []
    published = await read_records(redis, keys, [*sampled_by, *made])
    first: Attempt | Prompt | None = contents.attempts[0] if contents.attempts else prompt
    return Lineage(
        run=record.run,
        group_id=group_id,
        state="trained" if state == "intended" and committed else state,
        dropped_because=reason,
        kind=first.kind if first else None,
        dataset=first.dataset if first else None,
        row=first.row if first else None,
        prompt=first.prompt if first else None,
        label=first.label if first else None,
        group_size=first.group_size if first else None,
        attempts=[_attempt(attempt) for attempt in contents.attempts],
        source=cast(Any, contents.source if contents.attempts or not prompt else "redis"),
        note=contents.note,
        events=[LineageEvent(time=e.time, service=e.service, event=e.event, detail=e.detail) for e in events],
        step=step,
        step_committed=committed,
        weight_version=step,
        checksum=published[step].checksum if committed and step in published else None,
        sampled_by={version: published[version].checksum for version in sampled_by if version in published},
    )


async def _locate(redis: Redis, keys: Keys, group_id: int) -> tuple[GroupState, _Marks, Prompt | None]:
    """State, marks, and the prompt if it still waits; prompts and rollouts are read before the marks."""
    state, marks, prompt = cast(GroupState, "lost"), _Marks(False, False, False, False, False, {}), None
    for _ in range(LOOKS):
        prompts = await find_entries(redis, keys, PROMPTS, group_id)
        waiting = bool(await find_entries(redis, keys, ROLLOUTS, group_id))
        marks = await _read_marks(redis, keys, group_id)
        prompt = _decoded(prompts)
        state = await _state(redis, keys, group_id, marks, bool(prompts), waiting)
        if state != "lost":
            break
        await asyncio.sleep(AGAIN_S)
    return state, marks, prompt


async def _state(
    redis: Redis, keys: Keys, group_id: int, marks: _Marks, in_prompts: bool, in_rollouts: bool
) -> GroupState:
    decided: dict[GroupState, bool] = {
        "dead": marks.dead,
        "dropped": marks.dropped,
        "evaluated": marks.evaluated,
        "intended": marks.trained,  # until the commit is found
    }
    for state, is_so in decided.items():
        if is_so:
            return state
    if marks.settled:
        return "ready" if await find_entries(redis, keys, GROUPS, group_id) else "lost"
    if not in_prompts and not in_rollouts:
        return "lost"
    return "joining" if marks.attempts else "rollouts" if in_rollouts else "prompts"


async def _read_marks(redis: Redis, keys: Keys, group_id: int) -> _Marks:
    async with redis.pipeline(transaction=True) as pipe:
        for bitmap in (keys.emitted, keys.trained, keys.dropped, keys.evaluated):
            pipe.getbit(bitmap, group_id)
        pipe.sismember(keys.dead_groups, str(group_id))
        pipe.hgetall(keys.group(group_id))
        pipe.hgetall(keys.unscored(group_id))
        *bits, scored, unscored = await pipe.execute()
    return _Marks(*map(bool, bits), attempts={**unscored, **scored})


async def _contents(
    record: RunRecord, folder: Path, group_id: int, marks: _Marks, prompt: Prompt | None, step: int | None
) -> _Contents:
    if marks.attempts:
        return _decode([marks.attempts[name] for name in sorted(marks.attempts, key=int)], "redis")
    if step is not None and archived_by(folder) == f"{record.created:.6f}":
        try:
            archived = await asyncio.to_thread(read_step, folder, step)
        except RunRejected as error:
            return _Contents([], "none", str(error))
        if archived is not None and group_id in archived.intent.group_ids:
            return _decode(archived.payloads[archived.intent.group_ids.index(group_id)], "archive")
    if step is not None:
        kept = "set trainer.archive = true in a run whose groups are to be looked at later"
        return _Contents([], "none", f"{LEFT}: a checkpoint covers step {step}; {kept}")
    if marks.dropped or marks.evaluated:
        return _Contents([], "none", f"{LEFT}: those of groups that are not trained are kept for some minutes only")
    return _Contents([], "none", "" if prompt else "none of its attempts is scored yet")


def _decode(payloads: list[bytes], source: str) -> _Contents:
    codec, attempts, note = cast(Codec[Attempt], Codec(Attempt)), list[Attempt](), ""
    for payload in payloads:
        try:
            attempts.append(codec.decode(payload))
        except WireError as error:
            note = f"one of its attempts cannot be read: {error}"
    return _Contents(attempts, source, note)


def _decoded(entries: list[bytes]) -> Prompt | None:
    try:
        return cast(Codec[Prompt], Codec(Prompt)).decode(entries[0]) if entries else None
    except WireError:
        return None


def _reason(events: list[Any]) -> str:
    reasons = [str(event.detail["reason"]) for event in events if "reason" in event.detail]
    return reasons[-1] if reasons else "unknown: its event is not kept any more"


def _attempt(attempt: Attempt) -> LineageAttempt:
    return LineageAttempt(
        attempt=attempt.attempt,
        worker=attempt.worker,
        weight_versions=attempt.weight_versions,
        prompt_tokens=len(attempt.prompt_ids),
        response_tokens=attempt.tokens,
        finish_reason=attempt.finish_reason,
        seconds=attempt.seconds,
        reward=attempt.reward,
        reward_detail=attempt.reward_detail,
        text=attempt.text,
        preference=attempt.preference,
    )
