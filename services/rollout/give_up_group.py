"""A group that will never be generated -> one counted drop, which returns its slot, and an event that says why."""

import time
from typing import Any, cast

from shared.errors import WireError
from shared.logs import Log
from shared.messages import Event, Prompt
from shared.scripts import Ledger
from shared.streams import Stream

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
    prompt = await _find(prompts, group_id) or Prompt(group_id, "train", "", -1, "", 0)
    await drop_group(ledger, prompt, "dead", why)


async def _find(prompts: Stream[Prompt], group_id: int) -> Prompt | None:
    """The prompt of a group that is still on the stream; None if it is gone, or cannot be decoded."""
    start = "-"
    while entries := cast(
        list[tuple[bytes, dict[bytes, bytes]]], await prompts.redis.xrange(prompts.key, start, count=PAGE)
    ):
        for _, fields in entries:
            if int(fields.get(b"g", -1)) == group_id:
                return _decoded(prompts, fields.get(b"m", b""))
        start = "(" + entries[-1][0].decode()
    return None


def _decoded(prompts: Stream[Prompt], entry: bytes) -> Prompt | None:
    try:
        return prompts.codec.decode(entry)
    except WireError:
        return None
