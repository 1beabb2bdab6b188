"""Adapters from the trainer's backend in a real SGLang: no request waits, or mixes versions; every token is right."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from redis.asyncio import Redis
from transformers import AutoModelForCausalLM

from services.rollout.generate_group import GroupGenerator
from services.rollout.model_tokenizer import load_tokenizer
from services.rollout.router_connections import RouterConnections
from services.rollout.sampler import Sampler
from services.trainer.backends.adapt_layers import adapt_layers, merged, shape_of
from services.trainer.backends.torch_backend import AdamW, TorchBackend
from services.trainer.load_model import load_policy
from services.trainer.losses.sft import sft_loss
from services.trainer.publish_weights import PublishReport, WeightPublisher
from services.trainer.serve_run import _open_publisher
from services.trainer.step_ledger import StepLedger
from services.trainer.tiny_model import TinyShape, write_tiny_model
from shared.logs import Log
from shared.lora_settings import LoraSettings
from shared.messages import Prompt, Rollout
from shared.runs import RunRecord
from shared.tasks import end
from tests.conftest import until
from tests.services.rollout.real_engine import RealEngine
from tests.services.trainer.micro_batches import of_groups
from tests.services.trainer.recorded_groups import serving

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
START_S, LONG, SHORT = 240, 400, 40
LORA = {"rank": 8, "alpha": 16.0, "publish": "adapter"}


class Policy:
    """The trainer's side: a model whose adapters learn, its versions, and their publisher."""

    def __init__(self, folder: Path, publisher: WeightPublisher, first: int) -> None:
        policy = load_policy(folder, False, 1.0, torch.device("cpu"))
        adapt_layers(policy.core, shape_of(LoraSettings.model_validate(LORA)), 0)
        adamw = AdamW((0.9, 0.95), 1e-8, 0.0, 1.0)
        self._backend = TorchBackend(policy, torch.float32, adamw, folder, publish="adapter")
        self._core, self._kept = policy.core, dict[int, dict[str, torch.Tensor]]()
        self._whole = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.publisher, self.version = publisher, first - 1
        self._joiners = asyncio.create_task(publisher.serve_joiners())

    async def publish(self) -> PublishReport:
        """Take a step, keep the whole model, publish the adapters."""
        self.version += 1
        if self.version:
            self._backend.train_step(of_groups(range(self.version, self.version + 2)), sft_loss, 5e-3, self.version)
        self._kept[self.version] = merged(self._core, {n: p.detach().clone() for n, p in self._core.named_parameters()})
        staged = self.publisher.stage(self.version, self.version, self._backend.named_tensors())
        report = await self.publisher.publish(staged)
        assert report is not None
        return report

    @torch.no_grad()
    def check(self, version: int, prompt: list[int], response: list[int], logprobs: Any) -> int:
        """Whether all of the response is from this version, by its probabilities; returns it."""
        self._whole.load_state_dict(self._kept[version], strict=False)
        logits = self._whole(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
        expected = logits.log_softmax(-1).gather(1, torch.tensor(response)[:, None])[:, 0]
        assert (torch.as_tensor(logprobs) - expected).abs().max() < 1e-4
        return version

    def check_answer(self, prompt: list[int], answer: dict[str, Any]) -> int:
        """The version of an engine's answer, checked."""
        meta, response = answer["meta_info"], answer["output_ids"]
        (span,) = meta["weight_versions"]
        assert (span["start"], span["end"]) == (0, len(response))
        return self.check(int(span["version"]), prompt, response, [entry[0] for entry in meta["output_token_logprobs"]])

    def check_rollout(self, rollout: Rollout) -> int:
        """The version of an attempt, checked."""
        ((version, tokens),) = rollout.weight_versions
        assert tokens == len(rollout.token_ids)
        return self.check(version, rollout.prompt_ids.tolist(), rollout.token_ids.tolist(), rollout.logprobs)

    async def close(self) -> None:
        await end(self._joiners)
        await self.publisher.close()


@pytest.fixture(scope="module")
def real(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RealEngine, RunRecord]]:
    home, model = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("model")
    write_tiny_model(model, 0, TinyShape(), tie_embeddings=False)
    made = RealEngine(redis_url.removesuffix("/0") + "/8", home, model)
    made.start_router()
    record = asyncio.run(_activate(made))
    made.start_sidecar()
    yield made, record
    made.close()


async def _activate(real: RealEngine) -> RunRecord:
    redis = real.connect()
    await redis.flushdb()
    await redis.aclose()
    return await real.activate("disk", LORA)


@contextlib.asynccontextmanager
async def trainer(real: RealEngine, record: RunRecord, first: int) -> AsyncIterator[Policy]:
    """Its first version is out, and the engine serves it."""
    redis: Redis = real.connect()
    ledger = StepLedger(redis, real.run)
    await ledger.take_over()
    policy = Policy(real.model, _open_publisher(serving(redis, record, real.home), ledger), first)
    try:
        report = await policy.publish()
        assert (len(report.done), report.failed, report.unverified) == (1, {}, ())
        assert report.nbytes < (real.model / "model.safetensors").stat().st_size / 2
        await until(lambda: listed(real), START_S)
        yield policy
    finally:
        await policy.close()
        await redis.aclose()


async def adapters_of(real: RealEngine) -> set[str]:
    """Versions whose adapters the engine holds."""
    async with httpx.AsyncClient(trust_env=False) as http:
        models = (await http.get(f"{real.engine_url()}/v1/models", timeout=5)).json()["data"]
    return {model["id"].partition("-")[0] for model in models if model.get("parent")}


async def listed(real: RealEngine) -> bool:
    return await real.listed() == [real.engine_url()]


async def test_requests_end_with_the_version_that_they_began_with_and_later_ones_have_the_newest(
    real: tuple[RealEngine, RunRecord],
) -> None:
    engine, record = real
    async with trainer(engine, record, 0) as policy:
        for version in (1, 2):
            started, prompt = [asyncio.Event() for _ in range(2)], [version, 10, 20]
            long = [asyncio.create_task(engine.generate_streaming(prompt, LONG, event)) for event in started]
            async with asyncio.timeout(20):
                await asyncio.gather(*(event.wait() for event in started))
            report = await policy.publish()
            assert (len(report.done), report.failed, report.unverified) == (1, {}, ())
            after = await engine.generate(prompt, SHORT)
            assert not any(task.done() for task in long)
            assert policy.check_answer(prompt, after) == version
            assert {policy.check_answer(prompt, answer) for answer in await asyncio.gather(*long)} == {version - 1}


async def test_versions_come_and_go_under_load_and_the_engine_keeps_none_that_nobody_uses(
    real: tuple[RealEngine, RunRecord],
) -> None:
    engine, record = real
    answers, groups, stop = list[tuple[int, list[int], dict[str, Any]]](), list[list[Rollout]](), asyncio.Event()
    async with trainer(engine, record, 3) as policy, RouterConnections(engine.router_url, 60) as router:
        worker = GroupGenerator(load_tokenizer(engine.model, False, False), Sampler(router, Log("w")), None, "w")

        async def ask(client: int) -> None:
            while not stop.is_set():
                asked, prompt = policy.version, [client, len(answers) % 200, 7]
                answers.append((asked, prompt, await engine.generate(prompt, SHORT)))

        async def work() -> None:
            while not stop.is_set():
                sampling = {"temperature": 1.0, "max_new_tokens": SHORT}
                prompt = Prompt(len(groups), "train", "sums", 0, f"What is {len(groups)}?", 4, sampling=sampling)
                groups.append(await worker.generate(prompt))

        clients = [asyncio.create_task(each) for each in (ask(1), ask(2), work())]
        for _ in range(12):
            assert (await policy.publish()).failed == {}
            enough = len(answers) + 2  # of which one began with this version, or a later one
            await until(lambda enough=enough: _are(answers, enough), 60)
        stop.set()
        await asyncio.gather(*clients)
        used = [(asked, policy.check_answer(prompt, answer)) for asked, prompt, answer in answers]
        assert all(version >= asked - 1 for asked, version in used)
        assert len({version for _, version in used}) > 4
        assert all(len({policy.check_rollout(rollout) for rollout in group}) == 1 for group in groups)
        assert len(groups) > 2
        await policy.publish()
        await until(lambda: only_newest(engine, policy), 10)


async def only_newest(engine: RealEngine, policy: Policy) -> bool:
    return await adapters_of(engine) <= {str(policy.version), str(policy.version - 1)}


async def _are(answers: list[Any], enough: int) -> bool:
    return len(answers) >= enough
