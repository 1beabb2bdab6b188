"""Trainer and engine take turns with the memory of their device: the real stack, and kills at the worst moments."""

import contextlib
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Generator
from typing import Any, cast

import psutil
import pytest
from redis import Redis

from shared.messages import Codec, MemoryTurn
from shared.topology import MEMORY, Keys
from sluice.answers import Run
from tests.flow.running_stack import Stack, running_stack
from tests.flow.test_dataset_to_third_version import until_ended, write_rows

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

STEPS = 3
HELD_S = 120
CALLS = re.compile(r"POST /(release_memory_occupation|resume_memory_occupation|update_weights_from_tensor)")


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Generator[Stack]:
    with running_stack(tmp_path_factory.mktemp("stack")) as running:
        rows = tmp_path_factory.mktemp("rows")
        running.client.push_dataset("sums", write_rows(rows / "sums.jsonl", 80))
        running.client.push_dataset("held-out", write_rows(rows / "held_out.jsonl", 6))
        yield running


def run_tree(stack: Stack, name: str, **trainer: Any) -> dict[str, Any]:
    return {
        "name": name,
        "model": {"path": str(stack.model)},
        "data": {"datasets": [{"name": "sums"}]},
        "rollout": {"group_size": 4, "groups_per_step": 4, "sampling": {"max_new_tokens": 24}},
        "engine": {"server_args": {"context_length": 128, "max_running_requests": 32}},
        "weights": {"transport": "ipc", "memory": "turns"},
        "reward": {"type": "contains"},
        "trainer": {"steps": STEPS, "learning_rate": 1e-3, "checkpoint_every": 2, **trainer},
        "eval": {"datasets": ["held-out"], "every": 2, "sampling": {"temperature": 0.0, "max_new_tokens": 8}},
    }


class Asking:
    """Somebody who asks the run's engine one thing after the other, whoever has the memory."""

    def __init__(self, stack: Stack) -> None:
        self._stack, self._over = stack, threading.Event()
        self.answered, self.failed = 0, list[str]()
        self._thread = threading.Thread(target=self._ask)

    def __enter__(self) -> "Asking":
        return self

    def begin(self) -> None:
        """The engine is there."""
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(60)

    def _ask(self) -> None:
        request = {"text": "1+1=", "sampling_params": {"max_new_tokens": 64, "ignore_eos": True}}
        while not self._over.is_set():
            answer = self._stack.client.generate(request)
            reason = answer["meta_info"]["finish_reason"]["type"]
            self.answered += reason == "length"
            self.failed += [reason] if reason != "length" else []


def test_a_run_trains_and_evaluates_in_turns_and_nobody_who_asks_meanwhile_is_refused(stack: Stack) -> None:
    client = stack.client
    client.start_run(run_tree(stack, "turns"))
    with Asking(stack) as asking:
        for event in client.events("turns"):
            if event.event == "step" and event.data["step"] == 1:
                asking.begin()
            if event.event == "step" and event.data["step"] == STEPS:
                break
    finished = _finished(stack, "turns")
    assert (asking.failed, asking.answered > 0) == ([], True)
    assert finished.weight_version == STEPS
    assert {one.version for one in finished.evaluations} == {0, 2, 3}
    assert all(one.complete for one in finished.evaluations)
    steps = [step.metrics for step in client.steps("turns")]
    assert all(step["staleness_max"] == 0 and step["logprob_diff_mean_abs"] < 1e-4 for step in steps)
    assert all(step["seconds_memory"] > 0 for step in steps)
    log = (stack.home / "logs" / "sglang-0.log").read_text(errors="replace")
    calls = CALLS.findall(log)
    assert calls.count("release_memory_occupation") == STEPS
    assert _without_repeats(calls) == [
        "update_weights_from_tensor",
        *("release_memory_occupation", "resume_memory_occupation", "update_weights_from_tensor") * STEPS,
    ]


def test_the_engine_of_a_run_with_turns_ends_with_it(stack: Stack) -> None:
    _until(lambda: not _servers(stack), "the engine's end")


def test_a_killed_trainer_and_a_killed_engine_leave_nothing_stuck(stack: Stack) -> None:
    """Each while the trainer has the memory: it is taken again by who comes after, and no group is lost."""
    stack.client.start_run(run_tree(stack, "killed", steps=6, max_tokens_per_gpu=64))
    _until(lambda: _has_turn(stack, "killed", after_step=1), "the trainer's turn")
    os.kill(stack.processes()["trainer"], signal.SIGKILL)
    assert _turn(stack, "killed") == "trainer", "the kill came too late to show anything"
    _until(lambda: _has_turn(stack, "killed", after_step=3), "the trainer's turn after the kill")
    (server,) = _servers(stack)
    server.kill()
    finished = _finished(stack, "killed")
    assert finished.counters["trained"] == finished.counters["released"] == 24
    assert stack.client.ledger("killed", verify=True).problems == []


def _finished(stack: Stack, run: str) -> Run:
    finished = until_ended(stack.client, run)
    assert (finished.state, finished.reason) == ("finished", "")
    return finished


def _without_repeats(calls: list[str]) -> list[str]:
    return [call for before, call in zip(["", *calls], calls, strict=False) if call != before]


def _redis(stack: Stack) -> Redis:
    return Redis.from_url(stack.redis_url)


def _turn(stack: Stack, run: str) -> str:
    with _redis(stack) as redis:
        entries = cast(list[Any], redis.xrevrange(Keys(run).stream(MEMORY), count=1))
    return Codec[MemoryTurn](MemoryTurn).decode(entries[0][1][b"m"]).holder if entries else ""


def _has_turn(stack: Stack, run: str, after_step: int) -> bool:
    """Whether the trainer has the memory, and the engine has given it, to train a step after this one."""
    with _redis(stack) as redis:
        done = int(cast(Any, redis.hget(Keys(run).counters, "step")) or 0)
        parts = cast(dict[bytes, bytes], redis.hgetall(Keys(run).memory_parts))
    gave = any(b'"released"' in part for part in parts.values())
    return done >= after_step and gave and _turn(stack, run) == "trainer"


def _servers(stack: Stack) -> list[psutil.Process]:
    sidecar = psutil.Process(stack.processes()["engine-0"])
    alive = [child for child in sidecar.children() if child.status() != psutil.STATUS_ZOMBIE]
    with contextlib.suppress(psutil.NoSuchProcess):
        return [child for child in alive if "engine_server" in " ".join(child.cmdline())]
    return _servers(stack)


def _until(condition: Callable[[], bool], what: str) -> None:
    until = time.monotonic() + HELD_S
    while not condition():
        assert time.monotonic() < until, f"{what} did not come within {HELD_S} s"
        time.sleep(0.002)
