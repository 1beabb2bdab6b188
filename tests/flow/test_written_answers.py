"""Preference pairs and conversations by REST to a model that learned them: real Redis, gateway, worker and trainer."""

import os
import signal
import time
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from services.gateway.check_row import RowKeys, check_row
from services.rollout.demonstration import read_demonstration
from services.rollout.preference import read_preference
from shared.messages import expand
from sluice.answers import Run
from tests.flow.running_stack import Stack, running_stack
from tests.flow.written_rows import Judge, as_prompts, conversations, preference_rows, write_rows

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

RUN_DEADLINE_S = 240
BETA = 0.1
STEPS = 45


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Generator[Stack]:
    with running_stack(tmp_path_factory.mktemp("stack")) as running:
        rows = tmp_path_factory.mktemp("rows")
        running.client.push_dataset("pairs", write_rows(rows / "pairs.jsonl", preference_rows(1200, seed=1)))
        running.client.push_dataset("chats", write_rows(rows / "chats.jsonl", conversations(400, seed=1)))
        yield running


def tree(stack: Stack, name: str, kind: str, dataset: str, **trainer: Any) -> dict[str, Any]:
    return {
        "name": name,
        "kind": kind,
        "model": {"path": str(stack.model)},
        "data": {"datasets": [{"name": dataset}]},
        "rollout": {"groups_per_step": 32},
        "trainer": {"checkpoint_every": 20, "max_tokens_per_gpu": 4096, "archive": True, **trainer},
    }


def dpo_tree(stack: Stack, name: str) -> dict[str, Any]:
    return tree(stack, name, "dpo", "pairs", steps=STEPS, learning_rate=1e-3, dpo={"beta": BETA})


def until_ended(stack: Stack, run: str, kills: dict[int, str] | None = None) -> Run:
    """Wait for the end; `kills` names the service that is killed as soon as a step is done."""
    deadline, waiting, killed = time.monotonic() + RUN_DEADLINE_S, dict(kills or {}), dict[int, str]()
    for event in stack.client.events(run):
        assert time.monotonic() < deadline, f"{run} took longer than {RUN_DEADLINE_S} s; last event {event}"
        if event.event == "step" and (service := waiting.pop(event.data["step"], None)):
            killed[stack.processes()[service]] = service
            os.kill(stack.processes()[service], signal.SIGKILL)
    assert not waiting, f"steps {sorted(waiting)} were never told of"
    assert not {pid: service for pid, service in killed.items() if stack.processes()[service] == pid}
    return stack.client.run(run)


@pytest.fixture(scope="module")
def preferred(stack: Stack) -> Run:
    stack.client.start_run(dpo_tree(stack, "preferred"))
    return until_ended(stack, "preferred")


@pytest.fixture(scope="module")
def spoken(stack: Stack) -> Run:
    stack.client.start_run(tree(stack, "spoken", "sft", "chats", steps=80, learning_rate=3e-3))
    return until_ended(stack, "spoken")


def export(stack: Stack, run: str) -> Path:
    return stack.home / "runs" / run / "export"


def test_a_preference_run_needs_no_engine_and_every_pair_is_trained_once(stack: Stack, preferred: Run) -> None:
    assert (preferred.state, preferred.reason, preferred.step) == ("finished", "", STEPS)
    assert not [name for name in preferred.services if name.startswith(("engine", "reward"))]
    ledger = stack.client.ledger("preferred", verify=True)
    assert (ledger.balanced, ledger.problems) == (True, [])
    assert (ledger.groups.trained, ledger.groups.released, ledger.groups.lost) == (32 * STEPS, 32 * STEPS, 0)
    assert ledger.tokens.total["generated"] == ledger.tokens.total["trained"] > 0


def test_margin_and_accuracy_rise_from_nothing(stack: Stack, preferred: Run) -> None:
    metrics = [step.metrics for step in stack.client.steps("preferred")]
    assert metrics[0]["loss"] == pytest.approx(0.6931, abs=1e-4)
    assert (metrics[0]["preference_accuracy"], metrics[0]["preference_margin"]) == (0, 0)
    last = metrics[-10:]
    assert sum(one["preference_accuracy"] for one in last) / 10 > 0.95
    assert sum(one["preference_margin"] for one in last) / 10 > 1
    assert sum(one["loss"] for one in last) / 10 < 0.3
    assert {(one["groups"], one["attempts"]) for one in metrics} == {(32, 64)}


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Pairs that no run has seen, by a model and by the one before it."""

    accuracy: float
    margin: float
    bare_accuracy: float
    """Of the model alone, without a reference."""


def held_out(stack: Stack, run: str) -> HeldOut:
    rows = [check_row(row, RowKeys()) for row in preference_rows(300, seed=2)]
    stored = [{"prompt": row.prompt, "chosen": row.chosen, "rejected": row.rejected} for row in rows]
    after, before = Judge(export(stack, run)), Judge(stack.model)
    pairs = after.attempts(as_prompts(stored, "dpo"), read_preference)
    said = torch.tensor([[after.trained_sum(one) for one in pair] for pair in pairs])
    reference = torch.tensor([[before.trained_sum(one) for one in pair] for pair in pairs])
    gap, bare = (said - reference).diff(dim=1).neg().flatten(), said.diff(dim=1).neg().flatten()
    return HeldOut(float((gap > 0).float().mean()), float(BETA * gap.mean()), float((bare > 0).float().mean()))


def test_held_out_pairs_are_preferred_by_what_their_prompt_says(stack: Stack, preferred: Run) -> None:
    found = held_out(stack, "preferred")
    assert found.accuracy > 0.95, found
    assert found.margin > 1, found
    assert found.bare_accuracy > 0.95, found


def test_the_lineage_of_a_pair_shows_both_answers_and_which_was_chosen(stack: Stack, preferred: Run) -> None:
    lineage = stack.client.lineage("preferred", 5)
    assert (lineage.state, lineage.kind, lineage.group_size, lineage.step) == ("trained", "dpo", 2, 1)
    chosen, rejected = lineage.attempts
    assert (chosen.preference, rejected.preference) == ("chosen", "rejected")
    assert chosen.text.lower() == rejected.text.lower()
    assert chosen.text != rejected.text


def test_a_run_whose_trainer_and_worker_are_killed_ends_with_the_same_weights(stack: Stack, preferred: Run) -> None:
    stack.client.start_run(dpo_tree(stack, "killed"))
    run = until_ended(stack, "killed", {10: "trainer", 20: "rollout", 30: "trainer"})
    assert run.state == "finished"
    ledger = stack.client.ledger("killed", verify=True)
    assert (ledger.balanced, ledger.groups.trained, ledger.groups.twice) == (True, 32 * STEPS, 0)
    one, other = (export(stack, name) / "model.safetensors" for name in ("preferred", "killed"))
    assert one.read_bytes() == other.read_bytes()


def test_an_sft_run_learns_every_turn_but_the_muted_ones(stack: Stack, spoken: Run) -> None:
    assert (spoken.state, spoken.reason) == ("finished", "")
    after, before = Judge(export(stack, "spoken")), Judge(stack.model)
    groups = after.attempts(as_prompts(conversations(30, seed=2), "sft"), read_demonstration)
    for (rollout,) in groups[:10]:
        trained = torch.from_numpy(expand(rollout.loss_mask)).bool()
        muted = torch.from_numpy(rollout.token_ids == ord("8")).bool()  # the byte tokenizer's id of Y
        assert int(muted.sum()) == 6
        new, old = after.logprobs(rollout), before.logprobs(rollout)
        assert float(new[trained].mean()) > -0.3 > float(old[trained].mean())
        assert float(new[muted].mean()) < float(old[muted].mean()) - 1
    ledger = stack.client.ledger("spoken", verify=True)
    assert (ledger.balanced, ledger.groups.trained) == (True, 32 * 80)
