"""The second table of docs/metrics.md names what losses, corrections and distillation measure, and no others."""

import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from services.trainer.advantages.grpo import grpo
from services.trainer.advantages.token_advantages import AdvantagePlan, RankTokens
from services.trainer.choose_loss import choose_correction
from services.trainer.corrections.opsm import opsm
from services.trainer.explained_variance import explained_variance
from services.trainer.losses.by_staleness import NATS, TOKENS, means_by_staleness
from services.trainer.losses.dpo import dpo_loss
from services.trainer.losses.policy_loss import PolicyLoss
from services.trainer.losses.ppo_clip import ppo_clip
from services.trainer.losses.token_loss import Predictions
from services.trainer.losses.value_loss import value_loss
from shared.trainer_settings import CorrectionSettings
from tests.services.trainer.losses.trained_columns import random_tokens
from tests.services.trainer.ragged import ragged

PAGE = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
FIRST, SECOND = PAGE.split("## Metrics of settings")
ROW = re.compile(r"^\| `(\w+)` \|", re.MULTILINE)


def measured() -> set[str]:
    logprobs, tokens = random_tokens(1)
    said = Predictions(logprobs, -logprobs, logprobs)
    objective = partial(ppo_clip, clip_low=0.2, clip_high=0.2, dual_clip=3.0)
    everything = CorrectionSettings(type="mis", rejection="token", veto_threshold=0.1, max_token_staleness=2)
    policy = PolicyLoss(
        objective, "proximal", choose_correction(everything), partial(opsm, delta=0.1), kl_coef=0.1, entropy_coef=0.1
    )
    paired = replace(tokens, pair=(tokens.sample * 0))
    losses = [policy(said, tokens), value_loss(said, tokens, value_clip=0.2)]
    losses.append(dpo_loss(said, paired, beta=0.1, label_smoothing=0.0, kind="dpo"))
    batch = ragged(1)
    column = batch.column(1)
    rank = RankTokens(batch.sample, batch.mask, column, teacher=column)
    pulled = AdvantagePlan(grpo, distillation_coef=1.0).advantages(batch.samples, rank, lambda sums: sums)
    found = {name for loss in losses for part in (loss.sums, loss.maxima, loss.totals) for name in part}
    by_staleness = {name for name in found if name.startswith((NATS, TOKENS))}
    grouped = means_by_staleness(dict.fromkeys(by_staleness, 1.0))
    return found - by_staleness | {*grouped, *pulled.sums, *explained_variance(column, column, lambda sums: sums)}


def test_what_settings_measure_is_in_one_of_the_tables() -> None:
    first, second = set(ROW.findall(FIRST)), set(ROW.findall(SECOND))
    assert measured() - first == second
    assert not first & second


def test_the_policy_loss_of_a_plain_run_measures_what_the_first_table_has() -> None:
    logprobs, tokens = random_tokens(1)
    plain = replace(tokens, reference_logprobs=None)
    found = PolicyLoss(partial(ppo_clip, clip_low=0.2, clip_high=0.2))(Predictions(logprobs, torch.ones(1)), plain)
    assert {*found.sums, *found.maxima} <= set(ROW.findall(FIRST))
