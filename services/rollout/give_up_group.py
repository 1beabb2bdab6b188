"""A group that will never be generated -> one counted drop, which returns its slot, and an event that says why."""

import time
from typing import Any, cast

from shared.errors import WireError
from shared.logs import Log
from shared.messages import Event, Prompt
from shared.scripts import Ledger
from shared.streams import Stream, evaluation_of

PAGE = 200


async def drop_group(ledger: Ledger, prompt: Prompt, reason: str, why: str) -> None:
    """Count the group as dropped for `reason` (one word), once; `why` is the sentence for the user."""
    detail: dict[str, Any] = {"group": prompt.group_id, "dataset": prompt.dataset, "row": prompt.row}
    event = Event(
        time.time(), "rollout", "group_dropped", {**detail, "kind": prompt.kind, "reason": reason, "why": why}
    )
    evaluation = (prompt.pinned_version or 0, prompt.dataset) if prompt.kind == "eval" else None
    await ledger.drop(prompt.group_id, prompt.kind, reason, event, evaluation)


async def drop_dead(ledger: Ledger, prompts: Stream[Prompt], log: Log, group_id: int | None, why: str) -> None:
    """Drop the group of an entry that goes to the dead letters, before it does."""
    log.error("group_dead", run=ledger.keys.run, group=group_id, why=why)
    if group_id is None:
        return  # an entry without a group id took no slot
    await drop_group(ledger, await _find(prompts, group_id), "dead", why)


async def _find(prompts: Stream[Prompt], group_id: int) -> Prompt:
    """The prompt of a group that is still on the stream; what can be told of it, if it cannot be decoded."""
    start = "-"
    while entries := cast(
        list[tuple[bytes, dict[bytes, bytes]]], await prompts.redis.xrange(prompts.key, start, count=PAGE)
    ):
        for _, fields in entries:
            if int(fields.get(b"g", -1)) == group_id:
                return _decoded(prompts, group_id, fields)
        start = "(" + entries[-1][0].decode()
    return Prompt(group_id, "train", "", -1, "", 0)


def _decoded(prompts: Stream[Prompt], group_id: int, fields: dict[bytes, bytes]) -> Prompt:
    try:
        return prompts.codec.decode(fields.get(b"m", b""))
    except WireError:
        version, dataset = evaluation_of(fields) or (None, "")
        kind = "train" if version is None else "eval"
        return Prompt(group_id, kind, dataset, -1, "", 0, pinned_version=version)
