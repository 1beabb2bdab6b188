"""A real SGLang as engine and as teacher: exact logprobs, aborted attempts that go on, tokens of two versions."""

import asyncio
import json
from dataclasses import replace

import httpx
import numpy as np
import pytest

from services.reward.remote.batched_calls import Limits
from services.reward.remote.breaker import Breaker
from services.reward.remote.client import ServiceClient, open_client
from services.reward.teacher.served_teacher import ServedTeacher
from services.reward.teacher.vocabulary import check_vocabulary
from services.rollout.generate_group import GroupGenerator
from services.rollout.model_tokenizer import load_tokenizer
from services.rollout.refusals import GroupRejected
from services.rollout.router_connections import RouterConnections
from services.rollout.sampler import Sampler
from shared.messages import Prompt, expand
from tests.conftest import until

pytestmark = pytest.mark.slow

TEXT = "What is 12 + 30?"


@pytest.fixture
async def control(engine):
    async with httpx.AsyncClient(base_url=engine, timeout=30) as client:
        await set_version(client, 3)
        yield client


@pytest.fixture
async def groups(engine, model, log):
    async with RouterConnections(engine, 120) as connections:
        yield GroupGenerator(load_tokenizer(model, False, False), Sampler(connections, log), None, "w")


def prompt(max_new_tokens, group_size=4, text=TEXT, temperature=0.8):
    sampling = {"temperature": temperature, "max_new_tokens": max_new_tokens}
    return Prompt(0, "train", "sums", 0, text, group_size, sampling=sampling)


async def set_version(control, version):
    body = {"new_version": str(version), "abort_all_requests": False}
    (await control.post("/update_weight_version", json=body)).raise_for_status()


async def test_logprobs_of_a_group_equal_a_recomputation_at_the_sampling_temperature(control, groups, model):
    rollouts = await groups.generate(prompt(24, group_size=8))
    assert len({tuple(r.token_ids) for r in rollouts}) == 8
    for rollout in rollouts:
        assert recomputed(model, rollout, 0.8) == pytest.approx(rollout.logprobs, abs=1e-4)
        assert rollout.weight_versions == [(3, len(rollout.token_ids))]
        assert rollout.finish_reason in {"stop", "length"}


async def test_a_greedy_single_attempt_is_the_likeliest_one(control, groups):
    (first,), (again,) = [await groups.generate(prompt(12, 1, temperature=0.0)) for _ in range(2)]
    assert first.token_ids.tolist() == again.token_ids.tolist()


@pytest.mark.parametrize("mode", ["abort", "retract"])
async def test_a_weight_update_in_between_loses_no_token_and_marks_both_versions(control, groups, model, mode):
    generating = asyncio.create_task(groups.generate(prompt(2000, 24)))  # they end by chance, but not all of them soon
    await under_way(control)
    (await control.post("/pause_generation", json={"mode": mode})).raise_for_status()
    await set_version(control, 4)
    (await control.post("/continue_generation", json={})).raise_for_status()
    rollouts = await generating
    assert {version for r in rollouts for version, _ in r.weight_versions} == {3, 4}
    for rollout in rollouts:
        count = len(rollout.token_ids)
        assert len(expand(rollout.weight_versions)) == len(rollout.logprobs) == count
        assert rollout.finish_reason == "stop" or count == 2000
        assert recomputed(model, rollout, 0.8) == pytest.approx(rollout.logprobs, abs=1e-4)


async def test_aborted_requests_go_on_where_they_were(control, groups, model):
    generating = asyncio.create_task(groups.generate(prompt(600, 2)))
    await under_way(control)
    (await control.post("/abort_request", json={"abort_all": True})).raise_for_status()
    for rollout in await generating:
        assert rollout.finish_reason == "stop" or len(rollout.token_ids) == 600
        assert recomputed(model, rollout, 0.8) == pytest.approx(rollout.logprobs, abs=1e-4)


async def test_a_prompt_beyond_the_context_is_rejected(control, groups):
    with pytest.raises(GroupRejected, match="longer than the model's context"):
        await groups.generate(prompt(8, text="x" * 5000))
    with pytest.raises(GroupRejected, match="maximum context length"):
        await groups.generate(prompt(100_000))


async def test_a_served_teacher_says_of_each_token_what_the_same_folder_says_in_the_trainer(
    control, engine, groups, model
):
    asked = [prompt(n, 4, text, temperature=1.0) for n, text in ((40, TEXT), (90, "Count to three, then stop."))]
    rollouts = [rollout for one in asked for rollout in await groups.generate(one)]
    last_id = json.loads((model / "config.json").read_text())["vocab_size"] - 1
    of_turns = np.concatenate([rollouts[0].token_ids[:6], [last_id] * 2, rollouts[0].token_ids[6:]]).astype(np.int32)
    mask = [(1, 4), (0, 3), (1, len(of_turns) - 7)]
    rollouts[0] = replace(rollouts[0], token_ids=of_turns, logprobs=of_turns.astype(np.float32), loss_mask=mask)
    events: list[str] = []

    async def tell(event, detail):
        events.append(event)

    async with open_client(ServiceClient, engine, 60, "trainer.distillation.url") as client:
        await check_vocabulary(client, model, tell)
        teacher = ServedTeacher(client, Breaker(tell), Limits(size=512, tries=2))
        told = await asyncio.gather(*map(teacher.logprobs, rollouts))
        await teacher.close()
    assert events == []
    for found, wanted in zip(told, in_the_trainer(model, rollouts), strict=True):
        assert found == pytest.approx(wanted, abs=1e-4)
    assert (told[0] == 0).tolist() == (expand(mask) == 0).tolist()


def in_the_trainer(model, rollouts):
    """What a frozen teacher of this folder says of the tokens after the prompts."""
    import torch

    from services.trainer.estimates import Estimators
    from services.trainer.frozen_model import FrozenModel
    from services.trainer.load_model import load_policy
    from services.trainer.packing import pack
    from services.trainer.ranks import OneRank
    from services.trainer.training_batch import training_batch

    policy = load_policy(model, False, 1.0, torch.device("cpu"))
    batch = training_batch(rollouts)
    estimators = Estimators(teacher=FrozenModel(policy, torch.float32, OneRank(), offload=False))
    column = estimators.estimate(pack(batch, 256), len(batch.token_ids)).teacher
    parts = column.split(batch.lengths.tolist())
    return [part[len(one.prompt_ids) :].numpy() for part, one in zip(parts, rollouts, strict=True)]


@pytest.mark.parametrize("token_id", [999_999, -1])
async def test_a_token_id_that_the_model_does_not_have_is_refused_and_the_engine_lives(control, groups, token_id):
    answer = await control.post("/generate", json={"input_ids": [1, token_id], "sampling_params": {}})
    assert answer.status_code == 400
    assert "write ids from 0 to 319" in answer.text
    assert len(await groups.generate(prompt(2))) == 4


async def under_way(control):
    """Wait until requests that were sent before have sampled tokens: they run, and one sent now has got its 8."""

    async def is_running():
        loads = (await control.get("/v1/loads")).raise_for_status().json()["loads"]
        return any(load["num_running_reqs"] for load in loads)

    await until(is_running, 30)
    body = {"input_ids": [1, 2, 3], "sampling_params": {"max_new_tokens": 8, "ignore_eos": True}}
    (await control.post("/generate", json=body)).raise_for_status()


def recomputed(model, rollout, temperature):
    """Logprobs of the rollout's tokens by transformers, in one forward pass."""
    import torch
    from transformers import AutoModelForCausalLM

    policy = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    tokens = torch.tensor([[*rollout.prompt_ids, *rollout.token_ids]])
    with torch.no_grad():
        logits = policy(tokens).logits[0, len(rollout.prompt_ids) - 1 : -1]
    scores = (logits / temperature).log_softmax(-1)
    return np.asarray(scores.gather(-1, tokens[0, len(rollout.prompt_ids) :, None])[:, 0])
