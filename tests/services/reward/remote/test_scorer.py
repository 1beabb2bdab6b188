"""Batches, retries, outages and the search for the one bad attempt, against a service behind a fake transport."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest

from services.reward.remote import batched_calls as calls_module
from services.reward.remote import breaker as breaker_module
from services.reward.remote.breaker import Breaker
from services.reward.remote.client import RewardClient
from services.reward.remote.scorer import RemoteScorer
from services.reward.score import Score, ScoringFailed
from tests.conftest import until
from tests.services.reward.reward_cases import rollout

Responses = list[str]


class Service:
    """Scores an answer by its length; what it does with a batch can be changed."""

    def __init__(self) -> None:
        self.batches: list[Responses] = []
        self.status: Callable[[Responses], int] = lambda responses: 200

    def handle(self, request: httpx.Request) -> httpx.Response:
        responses: Responses = [one["response"] for one in json.loads(request.content)["rollouts"]]
        self.batches.append(responses)
        status = self.status(responses)
        return httpx.Response(status, json={"scores": [len(one) for one in responses]} if status == 200 else {})


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Service:
    monkeypatch.setattr(calls_module, "FIRST_BACKOFF_S", 0.002)
    monkeypatch.setattr(calls_module, "LONGEST_BACKOFF_S", 0.01)
    monkeypatch.setattr(breaker_module, "LONGEST_PAUSE_S", 0.01)
    return Service()


@pytest.fixture
async def scorer(service: Service) -> AsyncIterator[RemoteScorer]:
    async def ignore(available: bool, reason: str) -> None: ...

    http = httpx.AsyncClient(transport=httpx.MockTransport(service.handle))
    client = RewardClient(http, httpx.URL("http://rewards/"), 5)
    one = RemoteScorer("r1", client, Breaker(ignore, first_pause_s=0.005), batch_size=8, max_tries=3)
    yield one
    await one.close()
    await http.aclose()


async def score_all(scorer: RemoteScorer, texts: Responses) -> list[Any]:
    calls = [scorer.score(rollout(number, 0, text)) for number, text in enumerate(texts)]
    return await asyncio.gather(*calls, return_exceptions=True)


async def test_attempts_of_many_groups_share_requests_up_to_the_batch_size(
    service: Service, scorer: RemoteScorer
) -> None:
    texts = ["x" * n for n in range(20)]
    assert await score_all(scorer, texts) == [Score(float(n)) for n in range(20)]
    assert sorted(map(len, service.batches)) == [4, 8, 8]


async def test_a_rejected_batch_is_halved_until_the_bad_attempt_stands_alone(
    service: Service, scorer: RemoteScorer
) -> None:
    service.status = lambda responses: 422 if "bad" in responses else 200
    scores = await score_all(scorer, ["a", "b", "c", "bad", "d", "e", "f", "g"])
    assert [isinstance(score, ScoringFailed) for score in scores] == [False] * 3 + [True] + [False] * 4
    assert "gave no score: it answered 422" in str(scores[3])
    assert len(service.batches) == 7


async def test_an_attempt_that_crashes_a_working_service_is_found_and_does_not_pass_for_an_outage(
    service: Service, scorer: RemoteScorer
) -> None:
    service.status = lambda responses: 500 if "bad" in responses else 200
    await score_all(scorer, ["fine"])
    scores = await asyncio.wait_for(score_all(scorer, ["a", "bad", "c", "d"]), 5)
    assert [isinstance(score, Score) for score in scores] == [True, False, True, True]


async def test_a_single_bad_attempt_fails_though_nothing_else_is_there_to_prove_that_the_service_works(
    service: Service, scorer: RemoteScorer
) -> None:
    service.status = lambda responses: 500 if "bad" in responses else 200
    await score_all(scorer, ["fine"])
    (failed,) = await asyncio.wait_for(score_all(scorer, ["bad"]), 5)
    assert isinstance(failed, ScoringFailed)


async def test_an_outage_of_any_length_fails_nothing(service: Service, scorer: RemoteScorer) -> None:
    await score_all(scorer, ["fine"])
    service.status = lambda responses: 503
    waiting = asyncio.create_task(score_all(scorer, ["x" * n for n in range(20)]))

    async def many_calls_failed() -> bool:
        return len(service.batches) > 60

    await until(many_calls_failed)
    assert not waiting.done()
    service.status = lambda responses: 200
    assert await asyncio.wait_for(waiting, 5) == [Score(float(n)) for n in range(20)]


async def test_a_service_that_was_never_up_fails_nothing_either(service: Service, scorer: RemoteScorer) -> None:
    service.status = lambda responses: 500
    waiting = asyncio.create_task(score_all(scorer, ["a", "b"]))

    async def many_calls_failed() -> bool:
        return len(service.batches) > 15

    await until(many_calls_failed)
    service.status = lambda responses: 200
    assert await asyncio.wait_for(waiting, 5) == [Score(1.0), Score(1.0)]
