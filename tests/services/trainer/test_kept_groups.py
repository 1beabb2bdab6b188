"""Groups with engines that join and engines that never do, at the same time and at the same store; real gloo."""

import asyncio
import gc
import time
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from typing import Any

import pytest
import torch
from torch import distributed

from services.trainer.kept_groups import KeptGroups
from services.trainer.rendezvous import Communicator, MeetingPoint, Member, in_thread
from services.trainer.weight_buckets import WeightBuckets, plan_buckets

c10d: Any = distributed
PATIENCE_S = 2.0
LONG_S = 30


@pytest.fixture
async def groups() -> AsyncIterator[KeptGroups]:
    made = KeptGroups("127.0.0.1")
    yield made
    made.drop_all()


@pytest.fixture
def without_garbage_collection() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


def join(meeting: MeetingPoint, name: str, world_size: int = 2) -> "asyncio.Future[Any]":
    """As an engine does, for as long as it takes."""

    def connect() -> Any:
        store = c10d.TCPStore(meeting.host, meeting.port, is_master=False, timeout=timedelta(seconds=LONG_S))
        for prefix in (name, f"{name}/", "cpu/"):
            store = c10d.PrefixStore(prefix, store)
        options = c10d.ProcessGroupGloo._Options()
        options._timeout = timedelta(seconds=LONG_S)
        options._devices = [c10d.ProcessGroupGloo.create_device(hostname="127.0.0.1")]
        return c10d.ProcessGroupGloo(store, 1, world_size, options)

    return in_thread(connect)


def members(*names: str) -> tuple[Member, ...]:
    return tuple(Member(name, "a", 1) for name in names)


async def fail(groups: KeptGroups, name: str, *missing: str, wait_s: float = 1) -> RuntimeError:
    try:
        await groups.connect(name, members(*missing), "gloo", wait_s)
    except RuntimeError as error:
        return error
    raise AssertionError("nobody is there who could have joined")


async def test_an_engine_that_waits_where_two_groups_could_not_be_made_is_set_free(
    groups: KeptGroups, without_garbage_collection: None
) -> None:
    waiting = join(groups.meeting(), "one", world_size=3)
    failures = await asyncio.gather(fail(groups, "one", "slow", "gone"), fail(groups, "two", "dead"))
    groups.meet_anew(failures)
    with pytest.raises(RuntimeError):
        await asyncio.wait_for(waiting, PATIENCE_S)


async def test_an_engine_that_waits_for_a_group_is_set_free_though_others_keep_theirs(
    groups: KeptGroups, without_garbage_collection: None
) -> None:
    joined = join(groups.meeting(), "kept")
    kept, engine = await groups.connect("kept", members("well"), "gloo", LONG_S), await joined
    waiting = join(groups.meeting(), "broken", world_size=3)
    groups.meet_anew([await fail(groups, "broken", "slow", "gone")])
    with pytest.raises(RuntimeError):
        await asyncio.wait_for(waiting, PATIENCE_S)
    await _broadcast(kept, engine)


async def test_an_engine_that_never_joins_its_group_keeps_no_other_one_from_joining_its_own(
    groups: KeptGroups,
) -> None:
    failing = asyncio.create_task(fail(groups, "dead", "dead", wait_s=PATIENCE_S))
    meeting, started = groups.meeting(), time.monotonic()
    # Another round trip than the first: the group that never comes waits at the store by then.
    for name in ("first", "second"):
        joined = join(meeting, name)
        await groups.connect(name, members(name), "gloo", LONG_S)
        await joined
    assert time.monotonic() - started < PATIENCE_S
    groups.meet_anew([await failing])


async def _broadcast(group: Communicator, engine: Any) -> None:
    weights = [("model.norm.weight", torch.arange(8.0))]
    layout = plan_buckets(weights, 2**20)
    sent, received = (WeightBuckets(layout, torch.device("cpu")) for _ in range(2))
    sent.copy_from(weights)
    receiving = in_thread(lambda: engine.broadcast(received.flat[0], 0).wait())
    await in_thread(lambda: group.broadcast(sent))
    await receiving
    assert torch.equal(received.tensors["model.norm.weight"], weights[0][1])
