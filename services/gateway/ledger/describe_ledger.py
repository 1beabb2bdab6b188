"""A run in Redis and on disk -> its ledger as the REST API tells it, proven if that is asked for."""

import time
from pathlib import Path
from typing import Any

from redis.asyncio import Redis

from services.gateway.ledger.check_attempts import check_attempts
from services.gateway.ledger.check_checkpoint import newest_checkpoint
from services.gateway.ledger.check_groups import (
    Verdict,
    check_counters,
    check_lost,
    check_states,
    check_steps,
    excess,
)
from services.gateway.ledger.check_tokens import check_tokens, kind_total
from services.gateway.ledger.place_groups import Placed, place_groups
from services.gateway.ledger.read_records import Records, read_records
from services.gateway.ledger.take_snapshot import Snapshot
from shared.accounts import KINDS, Margins, by_state, undecided
from shared.ledger_answers import GroupLedger, LedgerAnswer, Place, TokenLedger
from shared.runs import RunRecord
from shared.topology import Keys

IDS_TOLD = 100
PENDING: tuple[Place, ...] = ("prompts", "rollouts", "joining", "ready", "intended")


async def describe_ledger(redis: Redis, record: RunRecord, runs_folder: Path, verify: bool) -> LedgerAnswer:
    keys = Keys(record.run)
    saved = newest_checkpoint(runs_folder, record)
    placed = await place_groups(redis, keys, record.settings)
    records = await read_records(redis, keys)
    verdict = Verdict()
    with verdict.proves(f"each of {placed.snapshot.groups} groups is in exactly one state"):
        check_lost(placed.lost, verdict)
        check_states(placed.snapshot, records, verdict)
    if verify:
        await _prove(redis, keys, record, placed, records, verdict)
        _check_saved(placed.snapshot, saved, verdict)
    return LedgerAnswer(
        run=record.run,
        state=record.state,
        time=time.time(),
        step=placed.snapshot.count("step"),
        intended=placed.snapshot.count("intended"),
        groups=_groups(placed, records, len(verdict.twice)),
        tokens=describe_tokens(placed.snapshot.accounts),
        verified=verify,
        balanced=not verdict.problems,
        problems=verdict.problems,
        lost=sorted(placed.lost)[:IDS_TOLD],
        twice=sorted(verdict.twice)[:IDS_TOLD],
        checks=verdict.checks,
    )


async def _prove(
    redis: Redis, keys: Keys, record: RunRecord, placed: Placed, records: Records, verdict: Verdict
) -> None:
    now, branch = placed.snapshot, record.settings.branch
    steps = f"{now.count('step')} steps are committed and {now.count('intended')} recorded, each once"
    with verdict.proves(f"{steps}, and they name the trained groups"):
        check_steps(now, records, branch.step if branch else 0, verdict)
    with verdict.proves("counters equal the bitmaps"):
        check_counters(now, records, verdict)
    # the slots of groups that were sent again went to others meanwhile
    over, redriven = excess(now, records, record.settings), now.count("redriven")
    with verdict.proves("released - dropped is within admission"):
        verdict.expect(over <= redriven, f"{over} groups are under way beyond admission, and {redriven} were re-driven")
    await check_tokens(redis, keys, now, records, verdict)
    await check_attempts(redis, keys, now, records, verdict)


def _check_saved(now: Snapshot, saved: int | None, verdict: Verdict) -> None:
    if saved is None:
        verdict.checks.append("no checkpoint of this run can be read here")
        return
    done = now.count("step")
    with verdict.proves(f"the newest checkpoint, step {saved}, is covered by the ledger"):
        verdict.expect(
            saved <= done,
            f"the newest checkpoint is of step {saved}, but the ledger ends at step {done}: Redis lost writes that the"
            " trainer built on; a trainer that starts goes back to a checkpoint that the ledger covers",
        )


def _groups(placed: Placed, records: Records, twice: int) -> GroupLedger:
    now, reasons = placed.snapshot, placed.snapshot.reasons()
    step = now.count("step")
    in_steps = {g for n, groups in records.up_to(now.count("intended")).items() if n > step for g in groups}
    pending: dict[Place, int] = dict.fromkeys(PENDING, 0)
    for place in placed.places.values():
        pending[place] += 1
    pending["intended"] = len(in_steps)
    return GroupLedger(
        released=now.groups,
        evaluations=now.count("eval_released"),
        trained=int(now.trained.sum()) - len(in_steps),
        evaluated=int(now.evaluated.sum()),
        dropped={reason: count for reason, count in reasons.items() if reason != "dead"},
        dead=reasons.get("dead", 0),
        pending=pending,
        lost=len(placed.lost),
        twice=twice,
    )


def describe_tokens(accounts: dict[str, int]) -> TokenLedger:
    """Accounts as they are kept -> by dataset, worker and version, each with its states."""
    states: dict[str, Margins] = {**by_state(accounts), "undecided": undecided(accounts)}
    tables: dict[str, dict[str, dict[str, int]]] = {kind: {} for kind in KINDS}
    for state, margins in states.items():
        for margin, tokens in margins.items():
            kind, _, name = margin.partition("|")
            tables[kind].setdefault(name, {})[state] = tokens
    total = {state: kind_total(margins, "dataset") for state, margins in states.items()}
    return TokenLedger(total=total, **{kind: dict(sorted(tables[kind].items(), key=_order)) for kind in KINDS})


def _order(item: tuple[str, Any]) -> tuple[int, str]:
    """Versions by number, names by letter."""
    return (int(item[0]), "") if item[0].isdigit() else (0, item[0])
