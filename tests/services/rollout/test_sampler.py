"""Sampler against a fake router: one request a group, retries, refusals, and aborted answers that are continued."""

import asyncio
import json

import pytest

from benchmarks.free_ports import free_port
from services.rollout.read_answers import append_spans, read_samples
from services.rollout.refusals import EngineUnavailable, GroupRejected
from services.rollout.router_connections import RouterConnections
from services.rollout.sampler import Sampler
from shared.run_settings import SamplingSettings
from tests.services.rollout.fake_router import FakeRouter, item

SAMPLING = SamplingSettings(max_new_tokens=8, stop=["\n"])


@pytest.fixture
async def sampler(router, log):
    async with RouterConnections(router.url, 10) as client:
        yield Sampler(client, log)


def script(*answers):
    """Respond with these, in order."""
    left = iter(answers)

    async def respond(body):
        return next(left)

    return respond


async def test_all_attempts_of_a_group_travel_in_one_request(router, sampler):
    samples = await sampler.sample([1, 2], SAMPLING, 5)
    assert len(samples) == 5
    (request,) = router.requests
    assert request["input_ids"] == [1, 2]
    assert request["return_logprob"] is True
    sent = request["sampling_params"]
    assert (sent["n"], sent["max_new_tokens"], sent["stop"]) == (5, 8, ["\n"])
    assert (sent["no_stop_trim"], sent["skip_special_tokens"]) == (True, False)


async def test_tokens_logprobs_and_versions_are_the_engines(router, sampler):
    router.respond = script((200, item([7, 8, 9], "stop", [(4, 2), (5, 1)], -0.25)))
    (sample,) = await sampler.sample([1], SAMPLING, 1)
    assert sample.token_ids == [7, 8, 9]
    assert sample.logprobs == [-0.25] * 3
    assert sample.weight_versions == [(4, 2), (5, 1)]
    assert sample.finish_reason == "stop"


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_a_failing_router_is_asked_again(router, sampler, status):
    router.respond = script((status, {"error": "no worker"}), (200, item([7])))
    (sample,) = await sampler.sample([1], SAMPLING, 1)
    assert sample.token_ids == [7]
    assert len(router.requests) == 2


async def test_a_router_that_is_not_up_yet_is_waited_for(log):
    port = free_port()
    late = FakeRouter()
    async with RouterConnections(f"http://127.0.0.1:{port}", 10) as client:
        asking = asyncio.create_task(Sampler(client, log).sample([1], SAMPLING, 2))
        await asyncio.sleep(0)
        async with late.serving(port):
            assert len(await asking) == 2


@pytest.mark.parametrize("status", [400, 413, 422])
async def test_a_refused_request_rejects_the_group_at_once(router, sampler, status):
    router.respond = script((status, {"error": {"message": "The input is longer than the context length"}}))
    with pytest.raises(GroupRejected, match="longer than the context"):
        await sampler.sample([1], SAMPLING, 1)


async def test_a_request_that_was_aborted_while_it_queued_is_asked_again(router, sampler):
    aborted = {"error": {"message": "Request 449b709e was aborted"}}
    router.respond = script((400, aborted), (200, item([7])))
    (sample,) = await sampler.sample([1], SAMPLING, 1)
    assert sample.token_ids == [7]


async def test_an_aborted_attempt_goes_on_from_its_own_tokens_and_keeps_its_logprobs_and_versions(router, sampler):
    async def respond(body):
        if body["sampling_params"]["n"] == 2:
            return 200, [item([7, 8, 9], "abort", [(3, None)], -0.1), item([6], "stop")]
        return 200, [item([5, 4], "stop", [(4, None)], -0.2)]

    router.respond = respond
    first, second = await sampler.sample([1, 2], SAMPLING, 2)
    assert first.token_ids == [7, 8, 9, 5, 4]
    assert first.logprobs == [-0.1] * 3 + [-0.2] * 2
    assert first.weight_versions == [(3, 3), (4, 2)]
    assert first.finish_reason == "stop"
    assert second.token_ids == [6]
    assert [r["input_ids"] for r in router.requests] == [[1, 2], [1, 2, 7, 8, 9]]
    assert router.requests[1]["sampling_params"]["max_new_tokens"] == 5


async def test_an_attempt_that_is_aborted_before_its_first_token_starts_again(router, sampler):
    router.respond = script((200, item([], "abort")), (200, item([], "abort")), (200, item([9], "stop")))
    (sample,) = await sampler.sample([1], SAMPLING, 1)
    assert (sample.token_ids, sample.weight_versions) == ([9], [(3, 1)])


async def test_an_attempt_that_is_aborted_at_its_limit_has_ended_by_length(router, sampler):
    router.respond = script((200, item(range(8), "abort")))
    (sample,) = await sampler.sample([1], SAMPLING, 1)
    assert (len(sample.token_ids), sample.finish_reason) == (8, "length")


def test_an_engine_that_names_one_version_only_sampled_all_tokens_with_it():
    answer = item([7, 8], versions=[(6, None)])
    del answer["meta_info"]["weight_versions"]
    assert read_samples(_body(answer), 1)[0].weight_versions == [(6, 2)]


def _without(name):
    answer = item([7, 8])
    del answer["meta_info"][name]
    return answer


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (item([7, 8], versions=[("default", None)]), "is no number"),
        (item([7, 8], versions=[(1, 1)]), "do not cover"),
        (_without("output_token_logprobs"), "differ"),
        (_without("finish_reason"), "cannot be read"),
        ([item([1]), item([2])], "1 continuations were asked for, and 2"),
        ("nonsense", "cannot be read"),
    ],
)
def test_an_answer_that_does_not_add_up_is_never_recorded(answer, says):
    with pytest.raises(EngineUnavailable, match=says):
        read_samples(_body(answer), 1)


def test_spans_that_touch_are_joined():
    assert append_spans([(3, 2)], [(3, 1), (4, 1)]) == [(3, 3), (4, 1)]
    assert append_spans([], [(3, 0)]) == []


def _body(answer):
    return json.dumps(answer).encode()
