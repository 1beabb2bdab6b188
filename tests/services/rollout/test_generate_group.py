"""One prompt -> the rollouts of its group, by the built-in single turn and by plugins."""

import asyncio

import numpy as np
import pytest

from services.rollout.generate_group import GroupGenerator, load_generate
from services.rollout.refusals import GroupRejected
from services.rollout.router_connections import RouterConnections
from services.rollout.sampler import Sampler
from shared.errors import PluginError
from shared.messages import Codec, Prompt, Rollout, expand
from tests.services.rollout.fake_router import item

SAMPLING = {"temperature": 0.7, "max_new_tokens": 16}


def prompt(text="1+1=", kind="train", pinned=None) -> Prompt:
    return Prompt(5, kind, "sums", 9, text, 4, "2", {"level": 1}, SAMPLING, pinned)


@pytest.fixture
async def sampler(router, log):
    async with RouterConnections(router.url, 10) as client:
        yield Sampler(client, log)


@pytest.fixture
def group(sampler, tokenizer):
    return lambda generate=None: GroupGenerator(tokenizer, sampler, generate, "w1")


async def test_a_single_turn_makes_every_attempt_of_the_group_from_the_same_tokens(router, group, tokenizer):
    rollouts = await group().generate(prompt(kind="eval", pinned=3))
    assert [r.attempt for r in rollouts] == [0, 1, 2, 3]
    assert len(router.requests) == 1
    assert router.requests[0]["input_ids"] == tokenizer.encode("1+1=")
    assert router.requests[0]["sampling_params"]["temperature"] == 0.7
    for rollout in rollouts:
        assert rollout.prompt_ids.tolist() == tokenizer.encode("1+1=")
        assert rollout.token_ids.tolist() == [*b"hi!", 258]
        assert rollout.text == tokenizer.decode([*b"hi!"])
        assert (rollout.kind, rollout.pinned_version, rollout.label, rollout.row) == ("eval", 3, "2", 9)
        assert (rollout.worker, rollout.finish_reason, rollout.metadata) == ("w1", "stop", {"level": 1})


async def test_every_array_of_a_rollout_has_one_number_a_token_also_after_the_wire(group):
    codec: Codec[Rollout] = Codec(Rollout)
    for rollout in await group().generate(prompt()):
        read = codec.decode(codec.encode(rollout))
        assert read.token_ids.dtype == np.int32
        assert read.logprobs.dtype == np.float32
        assert len(read.token_ids) == len(read.logprobs) == len(expand(read.loss_mask)) == 4
        assert len(expand(read.weight_versions)) == 4


async def test_a_plugin_makes_each_attempt_in_a_session_of_its_own(router, group):
    async def generate(prompt, session):
        await session.sample()
        session.add("ok")
        return f"attempt {session.attempt}" if session.attempt else None

    rollouts = await group(generate).generate(prompt())
    assert len(router.requests) == 4
    assert [r.text for r in rollouts][1:] == ["attempt 1", "attempt 2", "attempt 3"]
    assert rollouts[0].text.endswith("ok")
    assert [r.loss_mask for r in rollouts] == [[(1, 4), (0, 2)]] * 4


async def test_one_failing_attempt_ends_the_others_and_is_raised(group):
    ended = []

    async def generate(prompt, session):
        if session.attempt == 2:
            raise ZeroDivisionError("in the plugin")
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(session.attempt)

    with pytest.raises(ZeroDivisionError, match="in the plugin"):
        await group(generate).generate(prompt())
    assert sorted(ended) == [0, 1, 3]


async def test_a_plugin_that_cancels_itself_has_failed(group):
    async def generate(prompt, session):
        raise asyncio.CancelledError

    with pytest.raises(PluginError, match="cancelled its own attempt"):
        await group(generate).generate(prompt())


async def test_a_plugin_that_samples_nothing_has_failed(group):
    async def generate(prompt, session):
        session.add("made up")

    with pytest.raises(PluginError, match="sampled no token"):
        await group(generate).generate(prompt())


async def test_a_plugin_may_answer_an_engine_that_refuses_a_long_conversation(router, group):
    async def respond(body):
        return (400, "too long") if len(body["input_ids"]) > 8 else (200, item([7]))

    async def generate(prompt, session):
        await session.sample()
        session.add("(tool)")
        try:
            await session.sample()
        except GroupRejected:
            return "overflow"

    router.respond = respond
    assert [r.text for r in await group(generate).generate(prompt())] == ["overflow"] * 4


async def test_a_prompt_without_tokens_is_rejected_before_an_engine_sees_it(router, group):
    with pytest.raises(GroupRejected, match="no tokens"):
        await group().generate(prompt(""))
    assert not router.requests


async def test_a_prompt_with_tokens_beyond_the_model_is_rejected_before_an_engine_sees_it(
    router, group, tokenizer, monkeypatch
):
    monkeypatch.setattr(tokenizer, "vocabulary", 256)
    with pytest.raises(GroupRejected, match="beyond the model's vocabulary"):
        await group().generate(prompt([{"role": "user", "content": "hi"}]))
    assert not router.requests


def test_a_plugin_with_the_wrong_signature_is_refused_with_the_right_one(tmp_path, monkeypatch):
    (tmp_path / "wrong_generate.py").write_text(
        "async def few(prompt): ...\ndef sync(prompt, session): ...\nasync def fine(prompt, session): ...\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(PluginError, match="async def generate\\(prompt: Prompt, session: Session\\)"):
        load_generate("wrong_generate:few")
    with pytest.raises(PluginError, match="must be an async function"):
        load_generate("wrong_generate:sync")
    assert load_generate("wrong_generate:fine") is not None
    assert load_generate("") is None
