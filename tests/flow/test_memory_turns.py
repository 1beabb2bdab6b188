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
from sluice.client import GatewayError
from tests.flow.running_stack import Stack, running_stack
from tests.flow.test_dataset_to_third_version import until_ended, write_rows

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

RUN, STEPS, QUIET = "turns", 6, 3
"""Nothing is killed in the first steps."""
HELD_S = 120
LETTERS = {"release_memory_occupation": "g", "resume_memory_occupation": "r", "update_weights_from_tensor": "u"}
CALLS = re.compile(f"POST /({'|'.join(LETTERS)})")


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Generator[Stack]:
    with running_stack(tmp_path_factory.mktemp("stack")) as running:
        rows = tmp_path_factory.mktemp("rows")
        running.client.push_dataset("sums", write_rows(rows / "sums.jsonl", 80))
        running.client.push_dataset("held-out", write_rows(rows / "held_out.jsonl", 6))
        yield running


def run_tree(stack: Stack) -> dict[str, Any]:
    return {
        "name": RUN,
        "model": {"path": str(stack.model)},
        "data": {"datasets": [{"name": "sums"}]},
        "rollout": {"group_size": 4, "groups_per_step": 4, "sampling": {"max_new_tokens": 24}},
        "engine": {"server_args": {"context_length": 128, "max_running_requests": 32}},
        "weights": {"transport": "ipc", "memory": "turns"},
        "reward": {"type": "contains"},
        "trainer": {"steps": STEPS, "learning_rate": 1e-3, "checkpoint_every": 2, "max_tokens_per_gpu": 64},
        "eval": {"datasets": ["held-out"], "every": 2, "sampling": {"temperature": 0.0, "max_new_tokens": 8}},
    }


class Asking:
    """Somebody who asks the run's engine one thing after the other from its first version on, whoever's turn it is."""

    def __init__(self, stack: Stack) -> None:
        self._stack, self._over = stack, threading.Event()
        self.answered, self.failed = 0, list[str]()
        self._thread = threading.Thread(target=self._ask)

    def __enter__(self) -> "Asking":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(60)

    def _ask(self) -> None:
        request = {"text": "1+1=", "sampling_params": {"max_new_tokens": 64, "ignore_eos": True}}
        while not self._over.is_set():
            try:
                ending = self._stack.client.generate(request)["meta_info"]["finish_reason"]["type"]
            except GatewayError as error:
                ending = str(error)
            if ending == "length":
                self.answered += 1
            elif self.answered:
                self.failed.append(ending)


@pytest.fixture(scope="module")
def finished(stack: Stack) -> Run:
    """A run of which a client asks all the time, until its trainer, then its engine is killed in the trainer's turn."""
    client = stack.client
    client.start_run(run_tree(stack))
    with Asking(stack) as asking:
        for event in client.events(RUN):
            if event.event == "step" and event.data["step"] == QUIET:
                break
    assert (asking.failed, asking.answered > 0) == ([], True)
    _kill_trainer_in_its_turn(stack)
    _until(lambda: _has_turn(stack, after_step=QUIET + 1), "the trainer's turn after the kill")
    (server,) = _servers(stack)
    server.kill()
    return until_ended(client, RUN)


def test_the_run_finishes_and_no_group_is_lost_by_the_kills(stack: Stack, finished: Run) -> None:
    assert (finished.state, finished.reason, finished.weight_version) == ("finished", "", STEPS)
    assert finished.counters["trained"] == finished.counters["released"] == 4 * STEPS
    assert stack.client.ledger(RUN, verify=True).problems == []


def test_every_step_trains_what_the_version_before_it_sampled(stack: Stack, finished: Run) -> None:
    for step in stack.client.steps(RUN):
        assert step.metrics["staleness_max"] == 0
        assert step.metrics["logprob_diff_mean_abs"] < 1e-4, (
            "a version was not loaded whole, or the trainer came back so"
        )
        assert step.metrics["seconds_memory"] > 0


def test_evaluations_are_answered_before_the_trainer_takes_the_memory(finished: Run) -> None:
    assert {one.version for one in finished.evaluations} == {0, 2, 4, STEPS}
    assert all((one.complete, one.off_version) == (True, 0) for one in finished.evaluations)


def test_the_engine_gave_its_memory_for_every_step_and_took_it_again_for_every_version(
    stack: Stack, finished: Run
) -> None:
    log = (stack.home / "logs" / "sglang-0.log").read_text(errors="replace")
    calls = "".join(LETTERS[call] for call in CALLS.findall(log))
    turns = re.fullmatch(r"u+(gru+)*gu+(gru+)*", calls)  # the second life of the engine has nothing to take again
    assert turns is not None, calls
    assert calls.count("g") >= STEPS


def test_the_engine_ends_with_the_run(stack: Stack, finished: Run) -> None:
    _until(lambda: not _servers(stack), "the engine's end")


def _kill_trainer_in_its_turn(stack: Stack) -> None:
    """Stopped first: on a slow machine its turn may be over before a signal arrives."""
    trainer = stack.processes()["trainer"]
    while True:
        _until(lambda: _has_turn(stack, after_step=QUIET), "the trainer's turn")
        os.kill(trainer, signal.SIGSTOP)
        if _turn(stack) == "trainer":
            return os.kill(trainer, signal.SIGKILL)
        os.kill(trainer, signal.SIGCONT)


def _redis(stack: Stack) -> Redis:
    return Redis.from_url(stack.redis_url)


def _turn(stack: Stack) -> str:
    with _redis(stack) as redis:
        entries = cast(list[Any], redis.xrevrange(Keys(RUN).stream(MEMORY), count=1))
    return Codec[MemoryTurn](MemoryTurn).decode(entries[0][1][b"m"]).holder if entries else ""


def _has_turn(stack: Stack, after_step: int) -> bool:
    """Whether the trainer has the memory, and the engine has given it, to train a step after this one."""
    with _redis(stack) as redis:
        done = int(cast(Any, redis.hget(Keys(RUN).counters, "step")) or 0)
        parts = cast(dict[bytes, bytes], redis.hgetall(Keys(RUN).memory_parts))
    gave = any(b'"released"' in part for part in parts.values())
    return done >= after_step and gave and _turn(stack) == "trainer"


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
