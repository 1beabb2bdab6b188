"""Staleness apart: per token, while groups were generated, and while they waited for their step."""

from dataclasses import replace

import torch

from services.trainer.batch_metrics import batch_metrics
from services.trainer.ranks import OneRank
from services.trainer.step_table import gather_table
from services.trainer.training_batch import NO_VERSION, training_batch
from shared.messages import Rollout
from tests.services.trainer.recorded_groups import rollouts


def sampled_by(rollout: Rollout, *versions: int) -> Rollout:
    """The first tokens by the first version, one token by each of the others."""
    length = len(rollout.token_ids) - len(versions) + 1
    return replace(rollout, weight_versions=[(versions[0], length), *((version, 1) for version in versions[1:])])


def test_staleness_is_counted_in_flight_in_queue_and_by_token() -> None:
    one, two = rollouts(0)[0], rollouts(1)[0]
    batch = [sampled_by(one, 3, 5), sampled_by(two, 6)]
    metrics = batch_metrics(gather_table(batch, OneRank())[0], 7, is_rl=True)
    assert metrics["staleness_in_flight_mean"] == (2 + 0) / 2
    assert metrics["staleness_in_queue_mean"] == (2 + 1) / 2
    tokens = len(one.token_ids) + len(two.token_ids)
    behind = 4 * (len(one.token_ids) - 1) + 2 + len(two.token_ids)
    assert metrics["staleness_token_mean"] == behind / tokens
    assert (metrics["staleness_mean"], metrics["staleness_max"]) == (2.5, 4)


def test_every_token_carries_the_version_that_sampled_it() -> None:
    rollout = sampled_by(rollouts(0)[0], 3, 5)
    versions = training_batch([rollout]).versions
    assert versions.dtype == torch.int32
    expected = [NO_VERSION] * len(rollout.prompt_ids) + [3] * (len(rollout.token_ids) - 1) + [5]
    assert versions.tolist() == expected
