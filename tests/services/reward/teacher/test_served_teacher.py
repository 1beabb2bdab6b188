"""A served teacher behind a fake transport: what shares a request, and which attempt a refusal is about."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import numpy as np
import pytest

from services.reward.remote import batched_calls as calls_module
from services.reward.remote.batched_calls import Limits
from services.reward.remote.breaker import Breaker
from services.reward.remote.client import ServiceClient
from services.reward.score import ScoringFailed
from services.reward.teacher.served_teacher import ServedTeacher
from shared.messages import Rollout
from tests.services.reward.reward_cases import rollout
from tests.services.reward.teacher.teacher_server import Body, TeacherServer, expected


def attempt(number: int, prompt: int, length: int) -> Rollout:
    ids = np.random.default_rng(number).integers(0, 300, length).astype(np.int32)
    return rollout(
        number, 0, prompt_ids=np.arange(prompt, dtype=np.int32), token_ids=ids, logprobs=np.zeros(length, np.float32),
        loss_mask=[(1, length)], weight_versions=[(4, length)],
    )  # fmt: skip


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> TeacherServer:
    monkeypatch.setattr(calls_module, "FIRST_BACKOFF_S", 0.002)
    return TeacherServer()


@pytest.fixture
async def teacher(server: TeacherServer) -> AsyncIterator[ServedTeacher]:
    async def ignore(available: bool, reason: str) -> None: ...

    async with httpx.AsyncClient(transport=httpx.MockTransport(server.handle)) as http:
        client = ServiceClient(http, httpx.URL("http://teacher:30000/"), 5)
        one = ServedTeacher(client, Breaker(ignore, first_pause_s=0.005), Limits(size=40, tries=2))
        yield one
        await one.close()


async def ask(teacher: ServedTeacher, rollouts: list[Rollout]) -> list[Any]:
    return await asyncio.gather(*map(teacher.logprobs, rollouts), return_exceptions=True)


def lengths(server: TeacherServer) -> list[list[int]]:
    return sorted([len(ids) for ids in body["input_ids"]] for body in server.batches)


async def test_attempts_with_prompts_of_one_length_share_requests_up_to_the_budget_of_tokens(
    server: TeacherServer, teacher: ServedTeacher
) -> None:
    rollouts = [attempt(n, 5, 10) for n in range(5)] + [attempt(7, 9, 3), attempt(8, 9, 4), attempt(9, 5, 90)]
    for found, one in zip(await ask(teacher, rollouts), rollouts, strict=True):
        assert found.tolist() == expected(one).tolist()
    assert lengths(server) == [[12, 13], [15], [15, 15], [15, 15], [95]]
    assert all(body["logprob_start_len"] in (4, 8) for body in server.batches)


async def test_an_attempt_without_a_trained_token_is_not_asked_about(
    server: TeacherServer, teacher: ServedTeacher
) -> None:
    assert (await teacher.logprobs(rollout(0, 0, loss_mask=[(0, 2)]))).tolist() == [0.0, 0.0]
    assert server.batches == []


async def test_an_attempt_beyond_the_teachers_context_is_found_and_the_others_are_answered(
    server: TeacherServer, teacher: ServedTeacher
) -> None:
    def status(body: Body) -> int:
        return 400 if any(len(ids) > 15 for ids in body["input_ids"]) else 200

    server.status = status
    rollouts = [attempt(0, 5, 6), attempt(1, 5, 11), attempt(2, 5, 7)]
    first, second, third = await ask(teacher, rollouts)
    assert (first.tolist(), third.tolist()) == (expected(rollouts[0]).tolist(), expected(rollouts[2]).tolist())
    assert isinstance(second, ScoringFailed)
    assert str(second).startswith("the teacher at http://teacher:30000/ gave no log-probabilities: it answered 400")


async def test_a_wrong_answer_about_one_attempt_fails_it_alone(server: TeacherServer, teacher: ServedTeacher) -> None:
    right = server.answer

    def answer(body: Body) -> Any:
        first, *rest = right(body)
        first["meta_info"]["input_token_logprobs"][-1][0] = None
        return [first, *rest]

    server.answer = answer
    first, second = await ask(teacher, [attempt(0, 5, 6), attempt(1, 5, 8)])
    assert isinstance(first, ScoringFailed)
    assert "has no finite log-probability" in str(first)
    assert second.tolist() == expected(attempt(1, 5, 8)).tolist()
