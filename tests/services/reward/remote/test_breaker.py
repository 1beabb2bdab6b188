"""The circuit breaker: it opens after failures in a row, lets one call probe, and closes on an answer."""

import asyncio

import pytest

from services.reward.remote.breaker import FAILURES_TO_OPEN, Breaker
from services.reward.remote.failures import Rejected, Unavailable


class Service:
    """A service that is up or down, and counts its calls."""

    def __init__(self) -> None:
        self.up, self.calls, self.changes = False, 0, list[bool]()
        self.breaker = Breaker(self._on_change, first_pause_s=0.02)

    async def _on_change(self, available: bool, reason: str) -> None:
        self.changes.append(available)

    async def answer(self) -> str:
        self.calls += 1
        if not self.up:
            raise Unavailable("down")
        return "fine"

    async def open(self) -> None:
        for _ in range(FAILURES_TO_OPEN):
            with pytest.raises(Unavailable):
                await self.breaker.call(self.answer)


async def test_it_opens_after_failures_in_a_row_and_a_probe_closes_it() -> None:
    service = Service()
    await service.open()
    assert service.changes == [False]
    service.up = True
    waiting = asyncio.ensure_future(service.breaker.available())
    assert await service.breaker.call(service.answer) == "fine"
    await waiting
    assert service.changes == [False, True]


async def test_while_it_is_open_callers_probe_one_at_a_time() -> None:
    service = Service()
    await service.open()
    callers = [asyncio.create_task(service.breaker.call(service.answer)) for _ in range(10)]
    done, waiting = await asyncio.wait(callers, return_when=asyncio.FIRST_COMPLETED)
    assert (len(done), service.calls) == (1, FAILURES_TO_OPEN + 1)
    for task in done:
        with pytest.raises(Unavailable):
            task.result()
    service.up = True
    assert await asyncio.gather(*waiting) == ["fine"] * 9


async def test_a_rejection_is_an_answer_and_keeps_it_closed() -> None:
    async def reject() -> None:
        raise Rejected("this batch is wrong")

    service = Service()
    for _ in range(2 * FAILURES_TO_OPEN):
        with pytest.raises(Rejected):
            await service.breaker.call(reject)
    assert service.changes == []


async def test_a_probe_that_is_cancelled_leaves_the_line_to_the_next_caller() -> None:
    service = Service()
    await service.open()
    first = asyncio.create_task(service.breaker.call(service.answer))
    second = asyncio.create_task(service.breaker.call(service.answer))
    await asyncio.sleep(0)
    first.cancel()
    service.up = True
    assert await second == "fine"
