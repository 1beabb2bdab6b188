"""A seed -> a recorded step of uneven groups, siblings and masks, as the product's own rule cuts it for each rank."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from services.trainer.learner import Learner
from services.trainer.load_model import load_policy
from services.trainer.packing import pack
from services.trainer.ranks import Ranks
from services.trainer.share_step import cut, share_of
from services.trainer.tiny_model import TinyShape, write_tiny_model
from services.trainer.training_batch import training_batch
from shared.messages import PREFERENCES, TRAINED_KIND, Rollout, Spans, StepIntent
from shared.run_settings import RunSettings

TINY = TinyShape(hidden=34, layers=2, heads=2, kv_heads=1, intermediate=50, head_dim=16)
"""Rows that 4 ranks cannot share evenly."""
NOISE = 0.25
"""Nats by which the policy that sampled differs from the one that is trained, as a standard deviation."""
VERSION = 3
SIZES = (4, 1, 3, 2, 6, 2)
FEW = (2, 2)
"""Fewer attempts than the largest number of ranks has for each update."""
KINDS = ("rl", "sft", "dpo")


@dataclass(frozen=True, slots=True)
class UnevenStep:
    """A step with all its samples, and the intent that records it."""

    rollouts: list[Rollout]
    intent: StepIntent

    def train(self, learner: Learner, settings: RunSettings, ranks: Ranks, turned: bool) -> dict[str, float]:
        """This rank's part of it; `turned`: groups (within their update) and samples in the opposite order."""
        intent = self.intent
        if turned:
            parts = cut(intent.group_ids, settings.trainer.updates_per_step)
            order = [group for part in parts for group in reversed(part)]
            lengths = [intent.lengths[intent.group_ids.index(group)] for group in order]
            intent = replace(intent, group_ids=order, lengths=lengths)
        share = share_of(settings, intent, ranks)
        wanted = share.attempts
        place = {group: index for index, group in enumerate(intent.group_ids)}
        own = [r for r in self.rollouts if r.group_id in wanted and _is_wanted(wanted[r.group_id], r.attempt)]
        own.sort(key=lambda r: (place[r.group_id], r.attempt), reverse=turned)
        return learner.train(own, intent, share)


def models(folder: Path) -> dict[str, Path]:
    """The policy, a reference, a teacher and a critic: four tiny models of the same shape."""
    found = {name: folder / name for name in ("policy", "reference", "teacher", "critic")}
    for seed, path in enumerate(found.values()):
        write_tiny_model(path, seed, TINY)
    return found


def uneven_steps(policy: Path, kind: str, count: int = 2) -> list[UnevenStep]:
    """Every second of the steps has few samples; log-probabilities are those of the policy, and noise."""
    return [_step(policy, kind, number, SIZES if number % 2 else FEW) for number in range(1, count + 1)]


def _step(policy: Path, kind: str, number: int, sizes: Sequence[int]) -> UnevenStep:
    random = np.random.default_rng(number)
    counts = {"sft": [1] * len(sizes), "dpo": [2] * len(sizes)}.get(kind, list(sizes))
    rollouts: list[Rollout] = []
    lengths: list[list[int]] = []
    for group, count in enumerate(counts):
        prompt = random.integers(0, 200, int(random.integers(1, 7))).astype(np.int32)
        attempts = [_siblings(random, kind, 10 * number + group, attempt, count, prompt) for attempt in range(count)]
        lengths.append([sum(len(r.prompt_ids) + len(r.token_ids) for r in siblings) for siblings in attempts])
        rollouts += [r for siblings in attempts for r in siblings]
    ids = [10 * number + group for group in range(len(counts))]
    return UnevenStep(_sampled(random, policy, rollouts), StepIntent(number, ids, VERSION, number, lengths))


def _siblings(
    random: np.random.Generator, kind: str, group: int, attempt: int, count: int, prompt: np.ndarray
) -> list[Rollout]:
    """One sample, or sometimes two or three, of one attempt; some without a trained token."""
    number = int(random.choice([1, 1, 2, 3]))
    return [_sample(random, kind, group, attempt, count, prompt) for _ in range(number)]


def _sample(
    random: np.random.Generator, kind: str, group: int, attempt: int, count: int, prompt: np.ndarray
) -> Rollout:
    length = int(random.integers(2, 18))
    return Rollout(
        group_id=group,
        attempt=attempt,
        group_size=count,
        kind=TRAINED_KIND[kind],
        dataset=f"data_{group % 2}",
        row=group,
        prompt="",
        label=None,
        metadata={},
        prompt_ids=prompt,
        token_ids=random.integers(0, 200, length).astype(np.int32),
        logprobs=random.normal(0, NOISE, length).astype(np.float32),
        loss_mask=_mask(random, length),
        weight_versions=_spans(random, length, lambda: int(random.integers(0, VERSION + 1))),
        finish_reason="stop",
        text="",
        worker="w",
        seconds=0.1,
        preference=PREFERENCES[attempt] if kind == "dpo" else None,
        reward=float(random.normal()),
        teacher_logprobs=-random.exponential(5, length).astype(np.float32),
    )


def _mask(random: np.random.Generator, length: int) -> Spans:
    whole = random.random()
    if whole < 0.5:
        return [(1, length)]
    return [(0, length)] if whole < 0.65 else _spans(random, length, lambda: int(random.integers(0, 2)))


def _spans(random: np.random.Generator, length: int, value: Callable[[], int]) -> Spans:
    bounds = sorted({0, *random.integers(1, length, 2).tolist(), length})
    return [(value(), end - start) for start, end in pairwise(bounds)]


def _sampled(random: np.random.Generator, policy: Path, rollouts: list[Rollout]) -> list[Rollout]:
    """The same, the log-probabilities of the policy added to the noise."""
    batch = training_batch(rollouts)
    (packed,) = pack(batch, 10**6)
    column = torch.zeros(len(batch.token_ids))
    with torch.no_grad():
        column[packed.predicted] = load_policy(policy, False, 1.0, torch.device("cpu"))(packed)[0]
    own = [part[len(r.prompt_ids) :] for part, r in zip(column.split(batch.lengths.tolist()), rollouts, strict=True)]
    return [replace(r, logprobs=r.logprobs + part.numpy()) for part, r in zip(own, rollouts, strict=True)]


def _is_wanted(attempts: list[int] | None, attempt: int) -> bool:
    return attempts is None or attempt in attempts
