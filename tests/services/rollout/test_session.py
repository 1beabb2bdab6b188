"""Session: what is sampled and what is added, accounted for token by token over several turns."""

import pytest

from services.rollout.router_connections import RouterConnections
from services.rollout.sampler import Sampler
from services.rollout.session import Session
from shared.errors import PluginError
from shared.run_settings import SamplingSettings
from tests.services.rollout.fake_router import item

END = 258
PROMPT = list(b"2*3=")


def replies(*texts, version=3):
    """Answer with these texts in turn, the i-th sampled by version + i, each token with logprob -(i + 1)."""
    count = iter(range(len(texts)))

    async def respond(body):
        turn = next(count)
        text = texts[turn]
        tokens = [*text.removesuffix("$").encode(), *([END] if text.endswith("$") else [])]
        finish = "stop" if text.endswith(("$", "]")) else "length"
        return 200, item(tokens, finish, [(version + turn, None)], -(turn + 1.0))

    return respond


@pytest.fixture
async def sampler(router, log):
    async with RouterConnections(router.url, 10) as client:
        yield Sampler(client, log)


@pytest.fixture
def session(sampler, tokenizer):
    return Session(1, PROMPT, SamplingSettings(max_new_tokens=20), sampler, tokenizer)


async def test_several_turns_add_up_token_by_token(router, session, tokenizer):
    ask, answer = tokenizer.encode("[2*3]"), tokenizer.encode("6")

    async def respond(body):
        if len(router.requests) == 1:
            return 200, item(ask, "stop", [(3, None)], -1.0)
        return 200, item([*answer, END], "stop", [(4, None)], -2.0)

    router.respond = respond
    first = await session.sample(stop=["]"])
    session.add("(6)")
    second = await session.sample()
    assert (first.text, second.text) == ("[2*3]", "6")
    added = tokenizer.encode("(6)")
    assert session.token_ids == [*ask, *added, *answer, END]
    assert session.logprobs == [-1.0] * 5 + [0.0] * 3 + [-2.0] * 2
    assert session.loss_mask == [(1, 5), (0, 3), (1, 2)]
    assert session.weight_versions == [(3, 8), (4, 2)]
    assert session.text == "[2*3](6)6"
    assert session.finish_reason == "stop"
    assert router.requests[1]["input_ids"] == [*PROMPT, *ask, *added]
    assert [r["sampling_params"]["stop"] for r in router.requests] == [["]"], []]


async def test_the_runs_limit_holds_for_the_whole_response(router, session):
    router.respond = replies("x" * 12, "y" * 5)
    await session.sample(max_new_tokens=12)
    session.add("abc")
    await session.sample()
    assert [r["sampling_params"]["max_new_tokens"] for r in router.requests] == [12, 5]
    spent = await session.sample()
    assert (spent.token_ids, spent.finish_reason, len(router.requests)) == ([], "length", 2)


async def test_tokens_that_are_added_first_count_as_the_version_that_follows(router, session):
    router.respond = replies("6$", version=7)
    session.add("hm ")
    await session.sample()
    assert session.weight_versions == [(7, 5)]
    assert session.loss_mask == [(0, 3), (1, 2)]


@pytest.mark.parametrize("token_id", [-1, 261, 100_000])
async def test_a_token_that_the_model_does_not_have_is_refused_before_an_engine_sees_it(session, token_id):
    with pytest.raises(PluginError, match="from 0 to 260"):
        session.add([1, token_id])
    assert session.token_ids == []


async def test_messages_are_rendered_to_follow_the_reply(router, session, tokenizer):
    router.respond = replies("6$", "ok$")
    await session.sample()
    turn = session.render([{"role": "user", "content": "sure?"}])
    assert turn == "\n<|im_start|>user\nsure?<|im_end|>\n<|im_start|>assistant\n"
    session.add(turn)
    assert session.token_ids[2:] == tokenizer.encode(turn)
