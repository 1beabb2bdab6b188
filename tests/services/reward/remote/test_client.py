"""One call: which answers mean an outage and which an error of the batch."""

import asyncio
from collections.abc import Callable

import httpx
import pytest

from services.reward.remote.client import RewardClient
from services.reward.remote.failures import Rejected, Unavailable
from services.reward.score import Score


def client(answer: Callable[[httpx.Request], object], deadline_s: float = 5) -> RewardClient:
    http = httpx.AsyncClient(transport=httpx.MockTransport(answer))  # type: ignore[arg-type]
    return RewardClient(http, httpx.URL("http://user:secret@rewards/score?key=secret"), deadline_s)


async def test_scores_come_back() -> None:
    one = client(lambda request: httpx.Response(200, json={"scores": [1.0]}))
    assert await one.score(["{}"]) == [Score(1.0)]


@pytest.mark.parametrize("status", [500, 502, 503, 429, 404, 401, 302])
async def test_errors_of_the_service_are_outages(status: int) -> None:
    with pytest.raises(Unavailable, match=str(status)):
        await client(lambda request: httpx.Response(status)).score(["{}"])


@pytest.mark.parametrize("status", [400, 413, 422])
async def test_errors_of_the_batch_are_rejections_with_the_text_of_the_answer(status: int) -> None:
    with pytest.raises(Rejected, match="label must be a number"):
        await client(lambda request: httpx.Response(status, text="label must be a number")).score(["{}"])


async def test_no_connection_is_an_outage() -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    with pytest.raises(Unavailable, match="ConnectError: refused"):
        await client(refuse).score(["{}"])


async def test_a_call_has_one_deadline() -> None:
    async def hang(request: httpx.Request) -> httpx.Response:
        await asyncio.Event().wait()
        raise AssertionError("it waits for ever")

    with pytest.raises(Unavailable, match=r"no answer within 0.05 s"):
        await client(hang, deadline_s=0.05).score(["{}"])


async def test_health_is_asked_below_the_address_and_its_name_hides_secrets() -> None:
    asked: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(f"{request.method} {request.url.path}")
        return httpx.Response(200)

    one = client(answer)
    await one.check_health(5)
    assert asked == ["GET /score/health"]
    assert one.name == "http://rewards/score"
