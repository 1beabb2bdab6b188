"""The trainer's side of a test with real engines: a model whose versions are published, and answers checked by it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import torch
from redis.asyncio import Redis

from services.trainer.publish_weights import Deadlines, PublishReport, WeightPublisher
from services.trainer.step_ledger import StepLedger
from shared.logs import Log
from shared.tasks import end
from tests.services.rollout.real_engine import RealEngine

START_S = 240
TOKENS = 400
"""Of a request that comes while updates do: about half a second."""


DEADLINES = Deadlines(enrol_s=10, update_s=30, first_engine_s=START_S)


class Policy:
    """The trainer's side: a model, its versions, and their publisher."""

    def __init__(self, redis: Redis, real: RealEngine, version: int, publisher: WeightPublisher | None = None) -> None:
        from transformers import AutoModelForCausalLM

        self.model = AutoModelForCausalLM.from_pretrained(real.model, dtype=torch.float32).eval()
        self.version, self.kept = version, dict[int, dict[str, torch.Tensor]]()
        ledger = StepLedger(redis, real.run)
        self.publisher = publisher or WeightPublisher(ledger, "127.0.0.1", Log("trainer"), deadlines=DEADLINES)
        self._joiners = asyncio.create_task(self.publisher.serve_joiners())

    async def publish(self) -> PublishReport:
        """Change the weights a little, keep them, publish them."""
        if self.version:
            generator = torch.Generator().manual_seed(self.version)
            with torch.no_grad():
                for parameter in self.model.parameters():
                    parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.02)
        version, self.version = self.version, self.version + 1
        self.kept[version] = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        return await self.publisher.publish(self.publisher.stage(version, version, self.model.named_parameters()))

    @torch.no_grad()
    def logprobs(self, version: int, prompt: list[int], response: list[int]) -> torch.Tensor:
        """Of each response token, under the weights of a version."""
        newest = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        self.model.load_state_dict(self.kept[version])
        logits = self.model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
        self.model.load_state_dict(newest)
        return logits.log_softmax(-1).gather(1, torch.tensor(response)[:, None])[:, 0]

    async def close(self) -> None:
        await end(self._joiners)
        await self.publisher.close()


@contextlib.asynccontextmanager
async def policy_from(
    redis: Redis, real: RealEngine, version: int, publisher: WeightPublisher | None = None
) -> AsyncIterator[Policy]:
    policy = Policy(redis, real, version, publisher)
    try:
        yield policy
    finally:
        await policy.close()


async def publish_under_load(policy: Policy, real: RealEngine, version: int) -> None:
    """A version while requests come and go: all run through, and every token has its own version's probability."""
    prompt, started, published = [version, 10, 20], [asyncio.Event() for _ in range(2)], asyncio.Event()

    async def keep_asking(event: asyncio.Event) -> list[dict[str, Any]]:
        answers = list[dict[str, Any]]()
        while not published.is_set():
            answers.append(await real.generate_streaming(prompt, TOKENS, event))
        return answers

    asking = [asyncio.create_task(keep_asking(event)) for event in started]
    try:
        async with asyncio.timeout(20):
            await asyncio.gather(*(event.wait() for event in started))
        report = await policy.publish()
    finally:
        published.set()
    assert (len(report.done), report.failed, report.unverified) == (1, {}, ())
    answers = [answer for each in await asyncio.gather(*asking) for answer in each]
    versions = [versions_of(policy, prompt, answer) for answer in answers]
    assert {*versions} <= {(version - 1,), (version - 1, version), (version,)}
    assert (version - 1, version) in versions
    after = await real.generate([1, 2, 3], 4)
    assert after["meta_info"]["weight_version"] == str(version)


def versions_of(policy: Policy, prompt: list[int], answer: dict[str, Any]) -> tuple[int, ...]:
    """The request ran through, and each token has its version's probability; the versions in their order."""
    meta = answer["meta_info"]
    assert (meta["finish_reason"]["type"], len(answer["output_ids"])) == ("length", TOKENS)
    spans = [(int(span["version"]), span["start"], span["end"]) for span in meta["weight_versions"]]
    found = torch.tensor([entry[0] for entry in meta["output_token_logprobs"]])
    for number, start, stop in spans:
        expected = policy.logprobs(number, prompt, answer["output_ids"])
        assert (found - expected)[start:stop].abs().max() < 1e-4
    assert [span[1] for span in spans[1:]] == [span[2] for span in spans[:-1]]
    assert (spans[0][1], spans[-1][2]) == (0, TOKENS)
    return tuple(span[0] for span in spans)
