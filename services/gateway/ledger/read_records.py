"""The steps stream -> which step took which groups, and which steps were committed."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, cast

from redis.asyncio import Redis

from shared.errors import WireError
from shared.messages import Codec, StepIntent, StepRecord
from shared.topology import STEPS, Keys

PAGE = 500


@dataclass(slots=True)
class Records:
    """The whole stream; it is never trimmed."""

    intents: dict[int, list[int]] = field(default_factory=dict[int, list[int]])
    """Step -> its groups."""
    commits: Counter[int] = field(default_factory=Counter[int])
    repeated: list[int] = field(default_factory=list[int])
    """Steps that were recorded more than once."""
    unreadable: list[str] = field(default_factory=list[str])

    def up_to(self, step: int) -> dict[int, list[int]]:
        return {number: groups for number, groups in self.intents.items() if number <= step}


async def read_records(redis: Redis, keys: Keys) -> Records:
    records, codec, start = Records(), cast(Codec[StepRecord], Codec(STEPS.message)), "-"
    while page := cast(list[Any], await redis.xrange(keys.stream(STEPS), start, count=PAGE)):
        start = f"({page[-1][0].decode()}"
        for entry_id, fields in page:
            try:
                _add(records, codec.decode(fields.get(b"m", b"")))
            except WireError as error:
                records.unreadable.append(f"entry {entry_id.decode()} of steps is {error}")
    return records


def _add(records: Records, record: StepRecord) -> None:
    if not isinstance(record, StepIntent):
        records.commits[record.step] += 1
    elif record.step in records.intents:
        records.repeated.append(record.step)
        records.intents[record.step] += record.group_ids
    else:
        records.intents[record.step] = list(record.group_ids)
