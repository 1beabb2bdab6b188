"""A run's record and keys in Redis -> the Run object of the REST API."""

from typing import Any, cast

from redis.asyncio import Redis

from services.gateway.hold_back import why_held_back
from services.gateway.release_evaluation import evaluated_versions
from shared.admission import is_full
from shared.evaluation import read_tallies
from shared.messages import Codec, StepCommit, StepRecord
from shared.rest_answers import Evaluation, Run
from shared.runs import ENDED, RunRecord, present
from shared.scripts import Ledger
from shared.topology import STEPS, Keys

INTENTS_SKIPPED = 16
"""Entries looked at from the end of the ledger: intents follow the last commit."""


async def describe_run(redis: Redis, record: RunRecord) -> Run:
    keys = Keys(record.run)
    counters = await Ledger(redis, keys).counters()
    return Run(
        run=record.run,
        kind=record.settings.kind,
        state=record.state,
        reason=record.reason,
        created=record.created,
        started=record.started,
        ended=record.ended,
        step=counters.get("step", 0),
        steps=record.settings.trainer.steps,
        weight_version=counters.get("weight_version"),
        counters=counters,
        services=[] if record.state in ENDED else await present(redis, record.run),
        evaluations=[
            one for v in await evaluated_versions(redis, keys) for one in await describe_evaluation(redis, keys, v)
        ],
        metrics=await _last_metrics(redis, keys),
        settings=record.settings.model_dump(mode="json"),
        held_back=await _held_back(redis, record, counters.get("stored_bytes", 0)),
    )


async def _held_back(redis: Redis, record: RunRecord, stored_bytes: int) -> str:
    if record.state in ENDED or not is_full(record.settings, stored_bytes):
        return ""
    return why_held_back(record.settings, stored_bytes, int(await redis.scard(Keys(record.run).dead_groups)))


async def describe_evaluation(redis: Redis, keys: Keys, version: int) -> list[Evaluation]:
    """One version's evaluation, by dataset."""
    return [
        Evaluation(
            version=version,
            dataset=tally.dataset,
            groups=tally.groups,
            done=tally.done,
            attempts=tally.attempts,
            dropped=tally.dropped,
            off_version=tally.off_version,
            reward_mean=tally.reward_mean,
            complete=tally.complete,
        )
        for tally in await read_tallies(redis, keys, version)
    ]


async def _last_metrics(redis: Redis, keys: Keys) -> dict[str, float]:
    codec: Codec[StepRecord] = Codec(STEPS.message)
    entries = cast(list[Any], await redis.xrevrange(keys.stream(STEPS), count=INTENTS_SKIPPED))
    records = (codec.decode(fields[b"m"]) for _, fields in entries)
    return next((record.metrics for record in records if isinstance(record, StepCommit)), {})
