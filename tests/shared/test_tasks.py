"""Ending tasks, even those that lose a cancellation."""

import asyncio

from shared.tasks import end


async def test_a_task_that_swallows_its_first_cancellation_still_ends() -> None:
    swallowed = 0

    async def stubborn() -> None:
        nonlocal swallowed
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                swallowed += 1
                if swallowed == 3:
                    raise

    task = asyncio.create_task(stubborn())
    await asyncio.sleep(0)
    await end(task)
    assert task.cancelled()
    assert swallowed == 3


async def test_a_task_that_failed_is_ended_without_raising() -> None:
    async def fails() -> None:
        raise ValueError("seen by the one who holds the task")

    task = asyncio.create_task(fails())
    await asyncio.sleep(0)
    await end(task)
    assert isinstance(task.exception(), ValueError)


async def test_a_task_that_is_ended_while_it_ends_another_one_still_waits_for_it() -> None:
    cleaned = False

    async def slow_to_end() -> None:
        nonlocal cleaned
        try:
            await asyncio.Event().wait()
        finally:
            for _ in range(3):
                try:
                    await asyncio.sleep(0.2)
                except asyncio.CancelledError:
                    continue
            cleaned = True

    async def owner() -> None:
        inner = asyncio.create_task(slow_to_end())
        try:
            await asyncio.Event().wait()
        finally:
            await end(inner)

    task = asyncio.create_task(owner())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await end(task)
    assert cleaned
    assert task.cancelled()
