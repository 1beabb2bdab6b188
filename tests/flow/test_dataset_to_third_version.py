"""A dataset by REST to the third weight version: real Redis, router, SGLang, remote reward and trainer."""

import json
import time
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from shared.enrolment import read_parts
from shared.messages import WeightVersion
from shared.redis_connection import connect_checked
from shared.streams import Stream
from shared.topology import DEAD, WEIGHTS, Keys
from shared.weights_answers import RollbackAnswer
from sluice.answers import Run
from sluice.cli.follow_rollback import follow_rollback
from sluice.client import Client, GatewayError
from tests.flow.running_stack import Stack, remote_reward, running_stack

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

RUN, SERVED = "third-version", "serving"
RUN_DEADLINE_S = 240


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Generator[Stack]:
    with running_stack(tmp_path_factory.mktemp("stack")) as running:
        yield running


def write_rows(file: Path, count: int) -> Path:
    file.write_text("".join(json.dumps({"prompt": f"{i}+{i}=", "label": str(2 * i)}) + "\n" for i in range(count)))
    return file


def run_tree(stack: Stack, name: str, **reward: str) -> dict[str, Any]:
    return {
        "name": name,
        "model": {"path": str(stack.model)},
        "data": {"datasets": [{"name": "sums"}]},
        "rollout": {"group_size": 4, "groups_per_step": 4, "sampling": {"max_new_tokens": 8}},
        "engine": {"server_args": {"context_length": 128, "max_running_requests": 32}},
        "reward": reward,
        "trainer": {"steps": 3, "learning_rate": 1e-3, "checkpoint_every": 2},
        "eval": {"datasets": ["held-out"], "every": 2, "sampling": {"temperature": 0.0, "max_new_tokens": 8}},
    }


def until_ended(client: Client, run: str) -> Run:
    deadline = time.monotonic() + RUN_DEADLINE_S
    for event in client.events(run):
        assert time.monotonic() < deadline, f"{run} took longer than {RUN_DEADLINE_S} s; last event {event}"
    return client.run(run)


@pytest.fixture(scope="module")
def finished(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The run that the tests below look at."""
    rows = tmp_path_factory.mktemp("rows")
    stack.client.push_dataset("sums", write_rows(rows / "sums.jsonl", 40))
    stack.client.push_dataset("held-out", write_rows(rows / "held_out.jsonl", 6))
    with remote_reward() as url:
        stack.client.start_run(run_tree(stack, RUN, type="remote", url=url))
        return until_ended(stack.client, RUN)


@pytest.fixture(scope="module")
def evaluated(stack: Stack, finished: Run) -> Run:
    """The model that the run above began with, evaluated by the engine that served it."""
    with remote_reward() as url:
        tree = {**run_tree(stack, "evaluated", type="remote", url=url), "trainer": {"steps": 0}, "data": {}}
        stack.client.start_run(tree)
        return until_ended(stack.client, "evaluated")


@dataclass(frozen=True)
class Served:
    """A run that was live, asked, and made to go back to the version that it began with."""

    answer: dict[str, Any]
    """Of /generate, before."""
    after: dict[str, Any]
    """The same request, after the rollback."""
    asked: RollbackAnswer


@pytest.fixture(scope="module")
def served(stack: Stack, finished: Run) -> Served:
    client = stack.client
    with remote_reward() as url:  # which differs between attempts, so that every step changes the weights
        tree = {**run_tree(stack, SERVED, type="remote", url=url), "eval": {}}
        client.start_run({**tree, "trainer": {**tree["trainer"], "steps": 1000}})
        for event in client.events(SERVED):
            if event.event == "step":
                break
        request = {"text": "1+1=", "sampling_params": {"max_new_tokens": 4, "temperature": 0}}
        try:
            answer = client.generate(request)
            asked = follow_rollback(client, client.roll_back(SERVED, 0), RUN_DEADLINE_S)
            return Served(answer, client.generate(request), asked)
        finally:
            client.stop_run(SERVED)
            assert until_ended(client, SERVED).state == "stopped"


def test_the_run_finishes_and_every_group_is_accounted_for(finished: Run) -> None:
    assert (finished.state, finished.reason) == ("finished", "")
    assert (finished.step, finished.weight_version) == (3, 3)
    counters = finished.counters
    assert counters["released"] == counters["emitted"] == counters["trained"] == 12
    assert counters.get("dropped", 0) == 0


def test_trainer_and_engine_agree_on_the_first_step(stack: Stack, finished: Run) -> None:
    first, *later = [step.metrics for step in stack.client.steps(RUN)]
    assert first["logprob_diff_mean_abs"] < 1e-4
    assert first["ratio_deviation_max"] < 1e-4
    for metrics in (first, *later):
        assert metrics["staleness_max"] == 0
        assert metrics["attempts"] == 16
    assert all(metrics["logprob_diff_mean_abs"] < 1e-4 for metrics in later), "a version was not loaded whole"


def test_new_rollouts_carry_the_version_that_sampled_them(stack: Stack, finished: Run) -> None:
    samples = stack.client.samples(RUN, limit=500)
    train = {s.group_id: s for s in samples if s.kind == "train"}
    # max_staleness is 0: the four groups of step s are sampled by version s - 1
    ordered = sorted(train)
    assert ordered, "the groups of the last steps are still in Redis"
    for group_id in ordered:
        versions = {version for version, _ in train[group_id].weight_versions}
        assert len(versions) == 1
        assert versions <= {0, 1, 2}
    assert {v for v, _ in train[ordered[-1]].weight_versions} == {2}


def test_held_out_rows_are_evaluated_by_the_first_second_and_last_version(finished: Run) -> None:
    evaluations = {e.version: e for e in finished.evaluations}
    assert sorted(evaluations) == [0, 2, 3]
    assert all(e.complete and e.groups == 6 and e.off_version == 0 for e in evaluations.values())


async def test_every_version_was_proven_by_the_engine_with_the_trainers_checksum(stack: Stack, finished: Run) -> None:
    redis: Redis = await connect_checked(stack.redis_url, 10)
    try:
        stream: Stream[WeightVersion] = Stream(redis, RUN, WEIGHTS)
        announced = {message.version: message.checksum for _, message in await stream.read()}
        assert sorted(announced) == [0, 1, 2, 3]
        assert len(set(announced.values())) == 4
        for version, checksum in announced.items():
            (part,) = (await read_parts(redis, Keys(RUN), version)).values()
            assert (part.state, part.checksum, part.unverified) == ("done", checksum, 0)
        assert await redis.xlen(Keys(RUN).stream(DEAD)) == 0
    finally:
        await redis.aclose()


def test_the_export_is_a_model_folder_and_differs_from_the_start(stack: Stack, finished: Run) -> None:
    export = stack.home / "runs" / RUN / "export"
    assert (export / "config.json").exists()
    assert (export / "tokenizer.json").exists()
    weights, before = (export / "model.safetensors").read_bytes(), (stack.model / "model.safetensors").read_bytes()
    assert weights != before


def test_a_run_of_0_steps_answers_and_scores_as_version_0_did(stack: Stack, finished: Run, evaluated: Run) -> None:
    assert (evaluated.state, evaluated.reason, evaluated.weight_version) == ("finished", "", 0)
    (found,), before = evaluated.evaluations, next(e for e in finished.evaluations if e.version == 0)
    assert found == before

    def answers(run: str) -> dict[int, tuple[str, float | None]]:
        samples = stack.client.samples(run, 500, evaluations=True)
        return {s.row: (s.text, s.reward) for s in samples if s.weight_versions[0][0] == 0}

    assert len(answers(RUN)) == 6
    assert answers(RUN) == answers("evaluated")


def test_a_run_of_0_steps_trains_nothing_and_balances(stack: Stack, evaluated: Run) -> None:
    ledger = stack.client.ledger("evaluated", verify=True)
    assert (ledger.balanced, ledger.problems, ledger.step) == (True, [], 0)
    assert (ledger.groups.evaluated, ledger.groups.trained, ledger.groups.released) == (6, 0, 6)
    assert not (stack.home / "runs" / "evaluated" / "export").exists()


def test_the_gateway_forwards_generation_to_the_engine(served: Served) -> None:
    assert int(served.answer["meta_info"]["weight_version"]) < (served.asked.step or 0)
    assert 1 <= len(served.answer["output_ids"]) <= 4


def test_a_live_run_goes_back_and_its_engine_serves_the_older_weights(stack: Stack, served: Served) -> None:
    step = served.asked.step
    assert step is not None
    assert int(served.after["meta_info"]["weight_version"]) >= step
    first, again = (stack.client.weight_version(SERVED, version) for version in (0, step))
    assert (again.checksum, again.parent, again.groups) == (first.checksum, 0, 0)
    assert stack.client.weight_version(SERVED, step - 1).checksum != first.checksum
    (engine,) = again.engines
    assert (engine.state, engine.unverified, engine.failures) == ("done", 0, 0)
    assert {"connect", "pause", "load", "prove", "total"} <= engine.phases.keys()
    ledger = stack.client.ledger(SERVED, verify=True)
    assert (ledger.balanced, ledger.problems) == (True, [])


def test_the_ledger_of_versions_says_what_each_was_made_from_and_who_took_it(stack: Stack, finished: Run) -> None:
    found = stack.client.weights(RUN)
    assert [(v.version, v.parent, v.groups, v.attempts) for v in found.versions] == [
        (3, 2, 4, 16), (2, 1, 4, 16), (1, 0, 4, 16), (0, None, 0, 0),
    ]  # fmt: skip
    assert all((v.engines_done, v.engines_failed) == (1, 0) for v in found.versions)
    assert found.available == [(0, 0), (2, 3)]
    assert found.versions[0].tokens == stack.client.steps(RUN)[-1].metrics["tokens"]


def test_a_run_whose_engine_is_its_teacher_finds_no_difference_from_it(stack: Stack, finished: Run) -> None:
    tree = run_tree(stack, "taught", type="contains")
    tree["trainer"] |= {"steps": 2, "distillation": {"url": stack.engine_url, "coef": 1.0}}
    stack.client.start_run({**tree, "eval": {}})
    run = until_ended(stack.client, "taught")
    assert (run.state, run.reason) == ("finished", "")
    # max_staleness is 0: while attempts are scored, the engine still serves the version that sampled them
    differences = [step.metrics["teacher_kl"] for step in stack.client.steps("taught")]
    assert len(differences) == 2
    assert all(abs(difference) < 1e-4 for difference in differences)
    assert stack.client.ledger("taught", verify=True).problems == []


@pytest.mark.parametrize(
    ("reward", "sentence"),
    [
        ({"type": "remote", "url": "http://127.0.0.1:9"}, "http://127.0.0.1:9"),
        ({"type": "plugin", "plugin": "json:dumps"}, "write `async def score(rollout: Rollout) -> float`"),
    ],
)
def test_a_reward_that_cannot_work_fails_the_run_before_anything_is_generated(
    stack: Stack, finished: Run, reward: dict[str, str], sentence: str
) -> None:
    name = f"bad-{reward['type']}"
    stack.client.start_run(run_tree(stack, name, **reward))
    run = until_ended(stack.client, name)
    assert run.state == "failed"
    assert run.reason.startswith("reward: ")
    assert sentence in run.reason
    assert run.counters.get("released", 0) == 0


def test_a_missing_model_and_a_missing_dataset_are_refused_at_once(stack: Stack, finished: Run) -> None:
    tree = run_tree(stack, "bad-model")
    with pytest.raises(GatewayError, match="/no/such/model"):
        stack.client.start_run({**tree, "model": {"path": "/no/such/model"}})
    with pytest.raises(GatewayError, match="did you mean sums"):
        stack.client.start_run({**tree, "data": {"datasets": [{"name": "sum"}]}})
    assert "bad-model" not in [run.run for run in stack.client.runs()]
