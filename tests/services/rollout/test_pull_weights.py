"""The puller between a real Redis and an SGLang server whose answers the test writes."""

import asyncio
from functools import partial

import httpx
import pytest
from redis.asyncio import Redis

from services.rollout.launch_engine import EngineDied
from shared.enrolment import AT_WORK
from tests.conftest import until
from tests.services.rollout.scripted_server import (
    HASHES,
    UPDATE,
    Server,
    Sidecar,
    Start,
    answered,
    following,
    true,
)


@pytest.fixture
def start(redis: Redis) -> Start:
    return partial(following, redis)


async def test_a_version_is_loaded_in_order_while_generation_is_paused_and_then_reported(start: Start) -> None:
    async with start() as sidecar:
        await sidecar.announce(1, "g1")
        await sidecar.go(1, "g1")
        done = await sidecar.reaches(1, "done")
        await until(lambda: true(sidecar.proven > 0))
    assert sidecar.server.calls == UPDATE
    versions = [body.get("weight_version") for body in sidecar.server.bodies if "names" in body]
    assert versions == [None, "1"]
    assert (done.checksum, done.unverified, done.group) == ("sum-1", 0, "g1")
    assert not sidecar.update.mixed


async def test_the_group_is_joined_once_and_left_before_another_one_is_joined(start: Start) -> None:
    async with start() as sidecar:
        for version, group in ((1, "g1"), (2, "g1"), (3, "g3")):
            await sidecar.announce(version, f"a{version}")
            await sidecar.go(version, f"a{version}", group)
            await sidecar.reaches(version, "done")
    calls = sidecar.server.calls
    assert calls.count("/init_weights_update_group") == 2
    assert calls.index("/destroy_weights_update_group") == 2 * len(UPDATE) - 1


async def test_only_the_newest_of_several_announcements_isanswered(start: Start, redis: Redis) -> None:
    writer = Sidecar(redis, Server(), None)  # type: ignore[arg-type]
    await writer.announce(1, "g1")
    await writer.announce(2, "g2")
    async with start() as sidecar:
        await sidecar.reaches(2, "enrolled")
        assert await sidecar.part(1) is None


async def test_an_engine_that_has_the_version_says_so_and_is_not_touched(start: Start) -> None:
    async with start() as sidecar:
        await sidecar.announce(1, "g1")
        await sidecar.go(1, "g1")
        first = await sidecar.reaches(1, "done")
        await sidecar.announce(1, "again")
        await until(lambda: answered(sidecar, "again"))
        again = await sidecar.reaches(1, "done")
    assert again.checksum == "sum-1"
    assert (again.since, again.seconds) == (first.since, first.seconds)
    assert first.seconds["total"] >= first.seconds["load"]
    assert sidecar.server.calls == UPDATE
    assert sidecar.server.bodies[-1] == {"torch_empty_cache": False}, "the next version needs the same memory"


async def test_the_newest_announcement_wins_also_if_its_version_is_lower_or_its_content_another(start: Start) -> None:
    """The trainer went back to a checkpoint: it trains version 7 again, or publishes an earlier one."""
    async with start() as sidecar:
        for number, (version, checksum) in enumerate([(7, "old"), (7, "new"), (6, "older"), (7, "newest")]):
            await sidecar.announce(version, f"a{number}", checksum=checksum)
            await sidecar.go(version, f"a{number}")
            await until(lambda at=number: _has_pulled(sidecar, at + 1))
            part = await sidecar.reaches(version, "done")
            assert (part.announcement, part.checksum) == (f"a{number}", checksum)
    versions = [body["weight_version"] for body in sidecar.server.bodies if "weight_version" in body]
    assert versions == ["7", "7", "6", "7"]


async def test_a_drain_waits_until_the_engine_is_idle_and_retracts_what_came_meanwhile(start: Start) -> None:
    server = Server(refuse={"/update_weights_from_distributed": 1})
    async with start(server, mode="drain") as sidecar:
        await sidecar.announce(1, "g1")
        await sidecar.go(1, "g1")
        await sidecar.reaches(1, "done")
    assert server.calls == [UPDATE[0], "/update_weights_from_distributed", *UPDATE[1:]]
    assert server.bodies[1]["names"] == []
    assert server.bodies[2] == {"mode": "retract"}


async def test_requests_that_are_to_end_are_stopped_first_and_then_told(start: Start) -> None:
    async with start(mode="abort") as sidecar:
        await sidecar.announce(1, "g1")
        await sidecar.go(1, "g1")
        await sidecar.reaches(1, "done")
    paused = sidecar.server.calls.index("/pause_generation")
    assert sidecar.server.bodies[paused] == {"mode": "retract"}
    assert sidecar.server.calls[paused + 1] == "/abort_request"
    assert sidecar.server.calls[paused + 2 :] == UPDATE[paused + 1 :]


async def test_requests_that_do_not_end_in_time_are_retracted(start: Start) -> None:
    server = Server(hang={"/update_weights_from_distributed"})
    async with start(server, mode="drain") as sidecar:
        await sidecar.announce(1, "g1")
        await sidecar.go(1, "g1")
        done = await sidecar.reaches(1, "done")
    assert server.calls == [UPDATE[0], "/update_weights_from_distributed", *UPDATE[1:]]
    assert "drain" in done.seconds


async def test_a_go_for_an_earlier_life_of_the_engine_is_ignored(start: Start) -> None:
    async with start() as sidecar:
        await sidecar.announce(1, "g1")
        await sidecar.go(1, "g1", incarnation="life-0")
        await sidecar.announce(2, "g2")
        await sidecar.reaches(2, "enrolled")
    assert sidecar.server.calls == []


async def test_a_proof_has_a_deadline_of_its_own_for_bytes_that_never_come(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over NCCL every call before it is answered while the bytes are on their way."""
    monkeypatch.setattr("services.rollout.engine_update.PROOF_S", 2.0)
    async with start() as sidecar:
        await sidecar.announce(1, "g1")
        await sidecar.go(1, "g1")
        await sidecar.reaches(1, "done")
    assert sidecar.server.deadlines["/weights_checker"] == pytest.approx(2.0, abs=1e-3)


async def test_a_wrong_checksum_keeps_the_engine_paused_and_out_until_it_is_right(start: Start) -> None:
    server = Server(hashes={**HASHES, "lm_head.weight": "xx"})
    async with start(server) as sidecar:
        await sidecar.announce(1, "g1")
        await sidecar.go(1, "g1")
        failed = await sidecar.reaches(1, "failed")
        assert "1 of 2 tensors differ" in failed.reason
        (before,) = sidecar.failures
        assert before is not None
        assert before.state in AT_WORK, "left before the trainer was told"
        assert "/continue_generation" not in server.calls
        assert sidecar.proven == 0
        server.hashes = dict(HASHES)
        await sidecar.announce(1, "again")
        await sidecar.go(1, "again")
        await sidecar.reaches(1, "done")
    assert server.calls[-1] == "/continue_generation"


async def test_a_refused_bucket_closes_the_update_so_that_the_next_one_works(start: Start) -> None:
    server = Server(refuse={"/update_weights_from_distributed": 1})
    async with start(server) as sidecar:
        await sidecar.announce(1, "g1")
        await sidecar.go(1, "g1")
        assert "400" in (await sidecar.reaches(1, "failed")).reason
        assert server.calls[-2:] == ["/destroy_weights_update_group", "/end_weight_update"]
        assert sidecar.update.mixed
        await sidecar.announce(1, "again")
        await sidecar.go(1, "again")
        await sidecar.reaches(1, "done")
    assert not sidecar.update.mixed


async def test_an_engine_that_could_not_join_goes_on_with_the_weights_that_it_has(start: Start) -> None:
    server = Server(refuse={"/init_weights_update_group": 1})
    async with start(server) as sidecar:
        await sidecar.announce(1, "g1")
        await sidecar.go(1, "g1")
        await sidecar.reaches(1, "failed")
        await until(lambda: true(server.calls[-1] == "/continue_generation"))
        assert not sidecar.update.mixed
        assert len(sidecar.failures) == 1


async def test_an_engine_that_does_not_answer_is_given_up(start: Start) -> None:
    server = Server(silent={"/update_weights_from_distributed"})
    async with start(server) as sidecar:
        await sidecar.announce(1, "g1")
        await sidecar.go(1, "g1")
        assert sidecar.task is not None
        with pytest.raises(EngineDied, match="did not answer"):
            await sidecar.task
        assert (await sidecar.reaches(1, "failed")).state == "failed"


async def test_requests_that_forbid_a_flush_are_ended_with_what_they_have(start: Start) -> None:
    server = Server(refuse={"/flush_cache": 2})
    async with start(server) as sidecar:
        await sidecar.announce(1, "g1")
        await sidecar.go(1, "g1")
        await sidecar.reaches(1, "done")
    assert server.calls[-6:] == [
        "/flush_cache",
        "/abort_request",
        "/flush_cache",
        "/flush_cache",
        "/weights_checker",
        "/continue_generation",
    ]


async def test_what_is_not_shared_between_requests_needs_no_flush(start: Start) -> None:
    async with start(shares_prefixes=False) as sidecar:
        await sidecar.announce(1, "g1")
        await sidecar.go(1, "g1")
        await sidecar.reaches(1, "done")
    assert sidecar.server.calls == [call for call in UPDATE if call != "/flush_cache"]


async def test_in_place_updates_do_not_flush_and_are_proven_once_requests_go_on(start: Start) -> None:
    async with start(mode="in_place") as sidecar:
        await sidecar.announce(1, "g1")
        await sidecar.go(1, "g1")
        await sidecar.reaches(1, "done")
    assert sidecar.server.calls[-3:] == ["/end_weight_update", "/continue_generation", "/weights_checker"]
    assert "/flush_cache" not in sidecar.server.calls
    assert {"mode": "in_place"} in sidecar.server.bodies


async def test_an_engine_that_went_on_with_wrong_weights_is_paused_again_and_given_up(start: Start) -> None:
    server = Server(hashes={**HASHES, "lm_head.weight": "xx"})
    async with start(server, mode="in_place") as sidecar:
        await sidecar.announce(1, "g1")
        await sidecar.go(1, "g1")
        assert "1 of 2 tensors differ" in (await sidecar.reaches(1, "failed")).reason
        assert server.calls[-2:] == ["/weights_checker", "/pause_generation"]
        assert sidecar.update.mixed
        assert (sidecar.proven, len(sidecar.failures)) == (0, 1)


async def test_an_engine_that_goes_on_with_wrong_weights_and_cannot_be_paused_is_ended(start: Start) -> None:
    class PausedOnce(Server):
        async def answer(self, request: httpx.Request) -> httpx.Response:
            self.refuse["/pause_generation"] = self.calls.count("/pause_generation")
            return await super().answer(request)

    async with start(PausedOnce(hashes={**HASHES, "lm_head.weight": "xx"}), mode="in_place") as sidecar:
        await sidecar.announce(1, "g1")
        await sidecar.go(1, "g1")
        assert sidecar.task is not None
        with pytest.raises(EngineDied, match=r"tensors differ .* and it goes on"):
            await asyncio.wait_for(sidecar.task, 10)


async def test_tensors_without_a_prediction_are_counted_as_unverified(start: Start) -> None:
    async with start() as sidecar:
        await sidecar.announce(1, "g1", {"model.norm.weight": "aa"})
        await sidecar.go(1, "g1")
        assert (await sidecar.reaches(1, "done")).unverified == 1
        await sidecar.announce(2, "g2", {"unrelated": "cc"})
        await sidecar.go(2, "g2")
        assert (await sidecar.reaches(2, "done")).unverified == 2


async def _has_pulled(sidecar: Sidecar, times: int) -> bool:
    return sidecar.server.calls.count("/continue_generation") == times
