"""Every family of algorithms learns the words: through the product's learner, from what the policy itself samples."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.learning.learn import Progress, prefer, reinforce, words_run
from benchmarks.learning.words import Ids, Words

FIRST, LAST = slice(3), slice(-3, None)
FAMILIES: dict[str, dict[str, Any]] = {
    "grpo": {},
    "dr_grpo": {
        "advantage": {"normalize_std": False},
        "loss": {"aggregation": "constant", "constant_length": 5},
    },
    "rloo": {"advantage": {"estimator": "rloo"}},
    "gspo": {"loss": {"type": "gspo"}},
    "cispo": {"loss": {"type": "cispo"}},
    "reinforce_plus_plus": {"advantage": {"estimator": "reinforce_plus_plus", "whiten": "step"}},
    "reinforce_plus_plus_baseline": {"advantage": {"estimator": "reinforce_plus_plus_baseline", "whiten": "step"}},
    "ppo": {
        "advantage": {"estimator": "ppo", "gae_lambda": 0.95},
        "critic": {"learning_rate": 3e-3, "warmup_steps": 5},
        "steps": 40,
    },
    "kl_in_the_loss": {"kl": {"loss_coef": 0.01}},
}
CORRECTIONS: dict[str, dict[str, Any]] = {
    "tis": {},
    "icepop": {},
    "mis": {"level": "sequence", "mode": "clip", "normalize": True},
}


def trained(novice: Path, words: Words, max_staleness: int = 0, **trainer: Any) -> Progress:
    """Two updates a step, so that ratios are not 1 when the second one begins."""
    sections = {"rollout": {"max_staleness": max_staleness}, "trainer": {"updates_per_step": 2, **trainer}}
    return reinforce(words_run(novice, **sections), words)


def must_rise(progress: Progress) -> None:
    """By likeliest tokens on words that were never asked, and by sampled ones on those that were."""
    assert progress.before < 0.1
    assert progress.after > 0.5
    assert progress.mean(LAST) > progress.mean(FIRST) + 0.3


@pytest.mark.parametrize("family", FAMILIES)
def test_a_policy_learns_what_is_rewarded(novice: Path, words: Words, family: str) -> None:
    must_rise(trained(novice, words, **FAMILIES[family]))


def test_adapters_learn_what_is_rewarded(novice: Path, words: Words) -> None:
    trainer = {"updates_per_step": 2, "learning_rate": 1e-2, "kl": {"loss_coef": 0.001}}
    must_rise(reinforce(words_run(novice, lora={"rank": 8, "alpha": 16.0}, trainer=trainer), words))


@pytest.mark.parametrize("correction", CORRECTIONS)
def test_a_policy_learns_from_samples_of_two_versions_ago(novice: Path, words: Words, correction: str) -> None:
    weighed = {"type": correction, **CORRECTIONS[correction]}
    progress = trained(novice, words, 2, steps=50, loss={"old_policy": "proximal"}, correction=weighed)
    assert [step["staleness_max"] for step in progress.metrics[:4]] == [0, 1, 2, 2]
    must_rise(progress)


def means(progress: Progress, metric: str) -> tuple[float, float]:
    """Over the first and over the last steps."""
    column = [step[metric] for step in progress.metrics]
    return float(np.mean(column[FIRST])), float(np.mean(column[LAST]))


def test_a_policy_that_does_not_move_gets_no_better(novice: Path, words: Words) -> None:
    progress = trained(novice, words, learning_rate=1e-12)
    assert progress.after == progress.before
    assert abs(progress.mean(slice(-15, None)) - progress.mean(slice(15))) < 0.05


def test_rewards_that_say_nothing_teach_nothing(novice: Path, words: Words) -> None:
    random = np.random.default_rng(0)

    def by_chance(asked: Ids, answers: Sequence[Ids]) -> list[float]:
        return random.integers(0, 2, len(answers)).astype(float).tolist()

    progress = reinforce(words_run(novice, trainer={"updates_per_step": 2}), words, by_chance)
    assert progress.after < 0.2
    assert progress.mean(LAST) < progress.mean(FIRST) + 0.15


def test_a_critic_learns_to_tell_the_returns(novice: Path, words: Words) -> None:
    middle = np.median(words.trained)

    def begins_early(asked: Ids, answers: Sequence[Ids]) -> list[float]:
        return [float(answer[0] < middle) for answer in answers]

    critic = {"learning_rate": 3e-3, "warmup_steps": 30}
    settings = words_run(novice, trainer={"steps": 31, "advantage": {"estimator": "ppo"}, "critic": critic})
    progress = reinforce(settings, words, begins_early)
    explained, loss = means(progress, "value_explained_variance"), means(progress, "critic_loss")
    assert explained[0] < 0.2
    assert explained[1] > 0.5
    assert loss[1] < loss[0] / 2


def test_a_student_comes_close_to_its_teacher_by_its_own_answers(
    novice: Path, expert: tuple[Path, Progress], words: Words
) -> None:
    progress = distilled(novice, expert[0], words)
    first, last = means(progress, "teacher_kl")
    assert last < first / 2
    assert progress.before < 0.1
    assert progress.after > 0.5


def test_a_student_learns_nothing_from_itself(novice: Path, words: Words) -> None:
    progress = distilled(novice, novice, words)
    assert progress.after == progress.before
    assert all(abs(step["teacher_kl"]) < 1e-3 for step in progress.metrics)


def distilled(student: Path, teacher: Path, words: Words) -> Progress:
    """Without any reward."""
    settings = words_run(student, trainer={"distillation": {"teacher": str(teacher), "coef": 1.0}})
    return reinforce(settings, words, lambda asked, answers: [0.0] * len(answers))


def test_demonstrations_are_learned_and_hold_for_words_that_were_not_shown(expert: tuple[Path, Progress]) -> None:
    progress = expert[1]
    assert progress.before == 0
    assert progress.after > 0.8
    assert progress.metrics[-1]["loss"] < progress.metrics[0]["loss"] / 20


def test_preferences_turn_copies_into_right_answers(novice: Path, words: Words) -> None:
    trainer = {"steps": 30, "learning_rate": 3e-4, "dpo": {"beta": 1.0}}
    progress = prefer(words_run(novice, "dpo", rollout={"groups_per_step": 32}, trainer=trainer), words)
    assert progress.before < 0.1
    assert progress.after > 0.2
    assert progress.metrics[-1]["preference_accuracy"] > 0.9
    assert progress.metrics[-1]["chosen_reward"] > 0 > progress.metrics[-1]["rejected_reward"]
