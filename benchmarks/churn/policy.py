"""A tiny model -> versions of it that differ a little, published, and the probabilities that each gave to tokens."""

import asyncio
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM

from services.trainer.publish_weights import Deadlines, PublishReport, WeightPublisher
from services.trainer.step_ledger import StepLedger
from shared.logs import Log
from shared.messages import Rollout, expand
from shared.tasks import end

STEP = 0.004
"""Standard deviation of what a version changes in each weight: it moves a log-probability by far more than 1e-4."""


class Policy:
    """The trainer's side."""

    def __init__(self, ledger: StepLedger, model: Path, deadlines: Deadlines, seed: int) -> None:
        self._model: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
        self._draw = torch.Generator().manual_seed(seed)
        self._kept: dict[int, dict[str, torch.Tensor]] = {}
        self.newest = -1
        self._publisher = WeightPublisher(ledger, "127.0.0.1", Log("trainer"), deadlines=deadlines)
        self._joiners = asyncio.create_task(self._publisher.serve_joiners())

    async def publish(self) -> tuple[PublishReport, float]:
        """Change the weights a little, and publish them; the report, and the seconds of everything but the hashing."""
        if self.newest >= 0:
            with torch.no_grad():
                for parameter in self._model.parameters():
                    parameter.add_(torch.randn(parameter.shape, generator=self._draw), alpha=STEP)
        self.newest += 1
        self._kept[self.newest] = {name: tensor.clone() for name, tensor in self._model.state_dict().items()}
        staged = self._publisher.stage(self.newest, self.newest, self._model.named_parameters())
        began = time.monotonic()
        report = await self._publisher.publish(staged)
        assert report is not None, "no newer version takes the place of one that waits here"
        return report, time.monotonic() - began - report.seconds["hash"]

    async def close(self) -> None:
        await end(self._joiners)
        await self._publisher.close()

    def check_joiners(self) -> None:
        """Raise what ended the service of late engines, if anything did."""
        if self._joiners.done():
            self._joiners.result()

    def differences(self, rollouts: Iterable[Rollout]) -> NDArray[np.float64]:
        """|log-probability as sampled - recomputed under the version that its span names|, for every token."""
        errors: list[NDArray[np.float64]] = []
        for rollout in rollouts:
            versions = expand(rollout.weight_versions)
            recomputed = np.empty(len(versions))
            for version in np.unique(versions):
                where = versions == version
                recomputed[where] = self._logprobs(int(version), rollout)[where]
            errors.append(np.abs(recomputed - rollout.logprobs))
        return np.concatenate(errors) if errors else np.empty(0)

    @torch.no_grad()
    def _logprobs(self, version: int, rollout: Rollout) -> NDArray[np.float64]:
        self._model.load_state_dict(self._kept[version])
        prompt, response = torch.from_numpy(rollout.prompt_ids).long(), torch.from_numpy(rollout.token_ids).long()
        logits = self._model(torch.cat([prompt, response])[None]).logits[0, len(prompt) - 1 : -1]
        return logits.double().log_softmax(-1).gather(1, response[:, None])[:, 0].numpy()
