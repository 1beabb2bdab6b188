"""The steps stream, from its end -> what the steps of some versions trained, and when they were committed."""

from dataclasses import dataclass, field
from typing import Any, cast

from redis.asyncio import Redis

from shared.messages import Codec, StepIntent, StepRecord
from shared.topology import STEPS, Keys

PAGE = 200
"""Entries read at once; other requests get their turn in between."""


@dataclass(slots=True)
class StepFacts:
    """One committed step."""

    intent: StepIntent | None = None
    metrics: dict[str, float] = field(default_factory=dict[str, float])
    committed: float | None = None
    """When, in seconds since the epoch, by the clock of Redis."""

    @property
    def group_ids(self) -> list[int]:
        return self.intent.group_ids if self.intent else []

    @property
    def lengths(self) -> list[int]:
        """Tokens of each attempt."""
        return [tokens for group in self.intent.lengths for tokens in group] if self.intent else []


async def read_step_facts(redis: Redis, keys: Keys, first: int, last: int) -> dict[int, StepFacts]:
    """The steps from `first` to `last`; those that are not in the ledger are left out."""
    found: dict[int, StepFacts] = {}
    codec, end = cast(Codec[StepRecord], Codec(STEPS.message)), "+"
    while page := cast(list[Any], await redis.xrevrange(keys.stream(STEPS), end, count=PAGE)):
        for entry_id, fields in page:
            record = codec.decode(fields[b"m"])
            if first <= record.step <= last:
                _add(found.setdefault(record.step, StepFacts()), record, int(entry_id.partition(b"-")[0]) / 1000)
            if isinstance(record, StepIntent) and record.step <= first:
                return found
        end = f"({page[-1][0].decode()}"
    return found


def _add(facts: StepFacts, record: StepRecord, time: float) -> None:
    if isinstance(record, StepIntent):
        facts.intent = record
    else:
        facts.metrics, facts.committed = record.metrics, time
