"""A run's settings -> the run's learner trained on the words by what it samples itself; no engine and no Redis."""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.learning.sampler import Answer, Sampler
from benchmarks.learning.words import LONGEST, Ids, Words
from services.trainer.learner import Learner
from services.trainer.open_learner import open_learner
from services.trainer.ranks import OneRank
from services.trainer.share_step import share_of
from shared.messages import PREFERENCES, TRAINED_KIND, Rollout, StepIntent
from shared.run_settings import RunSettings
from shared.settings import merge

Score = Callable[[Ids, Sequence[Ids]], list[float]]
"""(a word by row, an answer by row) -> rewards."""
Publish = Callable[[int, Learner], object]
"""(version, who holds its weights)."""
CPU = torch.device("cpu")


@dataclass(slots=True)
class Progress:
    """What a run did."""

    before: float
    """Share of held-out words that the initial policy answers rightly, by its likeliest tokens."""
    after: float = 0.0
    """The same of the last policy."""
    right: list[float] = field(default_factory=list[float])
    """By step: the share of right answers that the policy samples after it."""
    metrics: list[dict[str, float]] = field(default_factory=list[dict[str, float]])
    """The trainer's own, by step."""

    def mean(self, steps: slice) -> float:
        """The mean of `right` over steps."""
        return float(np.mean(self.right[steps]))

    def first(self, share: float) -> int | None:
        """The first step after which this share of the sampled answers is right; None if that was never so."""
        return next((step for step, right in enumerate(self.right, 1) if right >= share), None)


def words_run(model: Path, kind: str = "rl", **sections: Any) -> RunSettings:
    """Settings of a run on the words; sections are merged over these."""
    sampled = {"group_size": 8, "sampling": {"max_new_tokens": LONGEST}} if kind == "rl" else {}
    tree: dict[str, Any] = {
        "name": "words",
        "kind": kind,
        "model": {"path": str(model)},
        "data": {"datasets": [{"name": "words"}]},
        "rollout": {"groups_per_step": 16, **sampled},
        "trainer": {"steps": 30, "learning_rate": 1e-3},
    }
    return RunSettings.model_validate(merge(tree, sections))


def demonstrate(settings: RunSettings, words: Words, right: float, folder: Path | None = None) -> Progress:
    """SFT on demonstrations of which this share is right; the model is exported to `folder`."""
    random = np.random.default_rng(settings.seed)

    def draw() -> tuple[Ids, Ids]:
        chosen = random.choice(words.trained, settings.rollout.groups_per_step)
        return chosen, words.demonstrations(chosen, right, random)

    return _imitate(settings, words, draw, folder)


def prefer(settings: RunSettings, words: Words, folder: Path | None = None) -> Progress:
    """DPO on pairs of the right answer and the copy."""
    random = np.random.default_rng(settings.seed)

    def draw() -> tuple[Ids, Ids]:
        chosen = random.choice(words.trained, settings.rollout.groups_per_step)
        pairs = np.stack([words.reversed(chosen), words.copied(chosen)], axis=1)
        return np.repeat(chosen, 2, axis=0), pairs.reshape(-1, pairs.shape[-1])

    return _imitate(settings, words, draw, folder)


def _imitate(settings: RunSettings, words: Words, draw: Callable[[], tuple[Ids, Ids]], folder: Path | None) -> Progress:
    """Train on answers that are given, a step's words and answers being what `draw` makes."""
    learner, sampler = open_learner(settings, CPU), Sampler(Path(settings.model.path), words.end)
    progress = Progress(_accuracy(sampler, words))
    for step in range(1, settings.trainer.steps + 1):
        asked, given = draw()
        answers = [Answer(answer, np.zeros(len(answer), np.float32), True) for answer in given]
        progress.metrics.append(_train(learner, settings, step, _rollouts(settings, words, asked, answers, None, 0)))
    return _finish(learner, sampler, words, progress, folder)


def reinforce(
    settings: RunSettings, words: Words, score: Score | None = None, publish: Publish = lambda *_: None
) -> Progress:
    """RL by the settings' algorithm; `rollout.max_staleness` is how many versions every step's samples are behind.

    The first steps train samples of version 0, as in a run whose groups queue for the trainer.

    Args:
        score: what the policy is rewarded for, if not right answers.
        publish: called with every version.
    """
    learner, sampler = open_learner(settings, CPU), Sampler(Path(settings.model.path), words.end)
    source = _Source(settings, words, sampler, score or words.rewards)
    progress = Progress(_accuracy(sampler, words))
    publish(0, learner)
    ready = deque(source.draw(0)[0] for _ in range(settings.rollout.max_staleness + 1))
    for step in range(1, settings.trainer.steps + 1):
        progress.metrics.append(_train(learner, settings, step, ready.popleft()))
        sampler.take(learner.named_tensors())
        publish(step, learner)
        rollouts, right = source.draw(step)
        progress.right.append(right)
        ready.append(rollouts)
    return _finish(learner, sampler, words, progress, None)


class _Source:
    """Groups sampled by the newest version."""

    def __init__(self, settings: RunSettings, words: Words, sampler: Sampler, score: Score) -> None:
        self._settings, self._words, self._sampler, self._score = settings, words, sampler, score
        self._random, self._chances = np.random.default_rng(settings.seed), torch.Generator().manual_seed(settings.seed)

    def draw(self, version: int) -> tuple[list[Rollout], float]:
        """The groups of one step, and the share of right answers."""
        rollout = self._settings.rollout
        chosen = self._random.choice(self._words.trained, rollout.groups_per_step)
        asked = np.repeat(chosen, rollout.group_size, axis=0)
        answers = self._sampler.answer(self._words.prompts(asked), LONGEST, self._chances)
        tokens = [answer.token_ids for answer in answers]
        rollouts = _rollouts(self._settings, self._words, asked, answers, self._score(asked, tokens), version)
        return rollouts, float(np.mean(self._words.rewards(asked, tokens)))


def _rollouts(
    settings: RunSettings,
    words: Words,
    asked: Ids,
    answers: Sequence[Answer],
    rewards: list[float] | None,
    version: int,
) -> list[Rollout]:
    size = settings.attempts_per_group
    return [
        Rollout(
            group_id=number // size,
            attempt=number % size,
            group_size=size,
            kind=TRAINED_KIND[settings.kind],
            dataset="words",
            row=number // size,
            prompt="",
            label=None,
            metadata={},
            prompt_ids=prompt,
            token_ids=answer.token_ids,
            logprobs=answer.logprobs,
            loss_mask=[(1, len(answer.token_ids))],
            weight_versions=[(version, len(answer.token_ids))],
            finish_reason="stop" if answer.is_ended else "length",
            text="",
            worker="sampler",
            seconds=0.0,
            preference=PREFERENCES[number % size] if settings.kind == "dpo" else None,
            reward=rewards[number] if rewards is not None else None,
        )
        for number, (prompt, answer) in enumerate(zip(words.prompts(asked), answers, strict=True))
    ]


def _train(learner: Learner, settings: RunSettings, step: int, rollouts: list[Rollout]) -> dict[str, float]:
    groups = list(range(settings.rollout.groups_per_step))
    intent = StepIntent(step, groups, step - 1, settings.seed + step)
    return learner.train(rollouts, intent, share_of(settings, intent, OneRank()))


def _accuracy(sampler: Sampler, words: Words) -> float:
    answers = sampler.answer(words.prompts(words.held_out), LONGEST, None)
    return float(np.mean(words.rewards(words.held_out, [answer.token_ids for answer in answers])))


def _finish(learner: Learner, sampler: Sampler, words: Words, progress: Progress, folder: Path | None) -> Progress:
    sampler.take(learner.named_tensors())
    progress.after = _accuracy(sampler, words)
    if folder is not None:
        learner.export(folder)
    return progress
