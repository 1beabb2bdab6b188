"""Packing: every trained token once, with its own columns; budgets kept; packed sequences do not see each other."""

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from services.trainer.losses.cispo import cispo
from services.trainer.losses.dpo import dpo_loss
from services.trainer.losses.gspo import gspo
from services.trainer.losses.policy_loss import PolicyLoss
from services.trainer.losses.ppo_clip import ppo_clip
from services.trainer.losses.sft import sft_loss
from services.trainer.losses.token_loss import LossFunction, Predictions, TrainedTokens
from services.trainer.losses.token_weights import Aggregation, token_weights
from services.trainer.packed_attention import NAME, plan_attention
from services.trainer.packing import PackedSequences, balanced_parts, idle_pack, pack, with_columns
from services.trainer.policy_model import PolicyModel
from services.trainer.ranks import OneRank
from services.trainer.step_table import gather_table
from services.trainer.token_scores import Entropy
from services.trainer.training_batch import TrainingBatch, training_batch
from shared.messages import PREFERENCES, Rollout
from tests.services.trainer.random_packs import SIZES, grouped_heads, rollouts_of, with_a_window

LENGTHS = [5, 40, 17, 2, 33, 64, 9, 9, 1, 28, 13, 50, 3, 3, 21, 7]
TOTAL = sum(LENGTHS)


def llama() -> PreTrainedModel:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES))


def build(make: Any, attention: str) -> PreTrainedModel:
    model = make().eval()
    model.set_attn_implementation(attention)
    return model


def batch(lengths: list[int]) -> TrainingBatch:
    return training_batch(rollouts_of(lengths))


def numbered(whole: TrainingBatch) -> TrainedTokens:
    """Columns that tell where a token stands."""
    place = torch.arange(len(whole.sample))
    return TrainedTokens(
        whole.behaviour_logprobs, place.float(), -place.float(), place.int(), whole.sample, pair=whole.pair
    )


@pytest.mark.parametrize("make", [grouped_heads, llama, with_a_window])
def test_packed_logprobs_and_gradients_equal_those_of_each_sequence_alone(make: Any) -> None:
    whole = batch(LENGTHS)
    packed_model, plain_model = build(make, NAME), build(make, "eager")
    (packed,) = pack(whole, 10_000)
    logprobs, _ = PolicyModel(packed_model, 0.7)(packed)
    logprobs.sum().backward()
    by_place: dict[int, torch.Tensor] = {}
    for sample, length in enumerate(LENGTHS):
        start = sum(LENGTHS[:sample])
        ids = whole.token_ids[start : start + length]
        logits = plain_model(input_ids=ids[None], use_cache=False).logits[0, :-1] / 0.7
        alone = logits.log_softmax(-1).gather(1, ids[1:, None])[:, 0]
        by_place |= {start + 1 + i: alone[i] for i in range(length - 1)}
    expected = torch.stack([by_place[place] for place in packed.predicted.tolist()])
    expected.sum().backward()
    torch.testing.assert_close(logprobs, expected, rtol=1e-5, atol=1e-5)
    for (name, ours), theirs in zip(packed_model.named_parameters(), plain_model.parameters(), strict=True):
        assert theirs.grad is not None
        torch.testing.assert_close(
            ours.grad, theirs.grad, rtol=1e-4, atol=1e-5 * float(theirs.grad.abs().max()), msg=name
        )


def test_a_change_in_one_sequence_changes_no_other() -> None:
    model = PolicyModel(build(grouped_heads, NAME), 1.0)
    before, after = batch([12, 30, 30, 11]), batch([12, 30, 30, 11])
    after.token_ids[12:42] = 5
    (old,), (new,) = pack(before, 1000), pack(after, 1000)
    others = before.sample[old.predicted] != 1
    with torch.no_grad():
        (told, _), (now, _) = model(old), model(new)
    torch.testing.assert_close(told[others], now[others], rtol=0, atol=0)
    assert (told[~others] != now[~others]).any()


@pytest.mark.parametrize("max_tokens", [16, 64, 90, 1000])
def test_every_trained_token_is_packed_once_with_its_own_columns(max_tokens: int) -> None:
    whole = batch(LENGTHS)
    parts = with_columns(pack(whole, max_tokens), numbered(whole))
    seen = torch.cat([part.trained.advantages for part in parts]).long()
    assert sorted(seen.tolist()) == torch.nonzero(whole.loss_mask).flatten().tolist()
    for part in parts:
        packed, place = part.packed, part.trained.advantages.long()
        assert torch.equal(packed.predicted, place)
        assert torch.equal(part.trained.weights, -part.trained.advantages)
        assert torch.equal(part.trained.staleness, place.int())
        assert torch.equal(packed.targets, whole.token_ids[place])
        assert torch.equal(packed.token_ids[packed.rows], whole.token_ids[place - 1])
        assert torch.equal(part.trained.behaviour_logprobs, whole.behaviour_logprobs[place])
        assert torch.equal(part.trained.sample, whole.sample[place])
        starts = packed.attention.cu_seqlens[:-1].long()
        assert len(packed.token_ids) <= max_tokens or len(starts) == 1
        assert packed.position_ids[starts].tolist() == [0] * len(starts)


def test_only_chosen_samples_are_packed() -> None:
    whole = batch(LENGTHS)
    chosen = torch.arange(len(LENGTHS)) % 3 == 0
    seen = torch.cat([part.predicted for part in pack(whole, 64, chosen)])
    assert sorted(seen.tolist()) == torch.nonzero(whole.loss_mask & chosen[whole.sample]).flatten().tolist()
    assert pack(whole, 64, torch.zeros(len(LENGTHS), dtype=torch.bool)) == []


@pytest.mark.parametrize("max_tokens", [1, 64, 90])
def test_pairs_are_never_parted(max_tokens: int) -> None:
    whole = training_batch(paired(LENGTHS))
    parts = [set((whole.pair[part.predicted] // 2).tolist()) for part in pack(whole, max_tokens, pairs=True)]
    together = [pair for part in parts for pair in part]
    assert len(together) == len(set(together)) == len(LENGTHS) // 2
    if max_tokens > 1:
        assert len(parts) < len(together)


def test_parts_are_as_few_as_the_budget_allows_and_about_equal() -> None:
    assert balanced_parts([30, 30, 30, 30], 100) == [(0, 2), (2, 4)]
    assert balanced_parts([500, 30, 30], 100) == [(0, 1), (1, 3)]
    assert balanced_parts([], 100) == []


def test_similar_lengths_share_a_padded_batch_and_different_ones_do_not() -> None:
    buckets = plan_attention([400, 390, 100, 99, 3, 2]).buckets
    assert [(bucket.first, bucket.sequences, bucket.longest) for bucket in buckets] == [
        (0, 2, 400),
        (790, 2, 100),
        (989, 2, 3),
    ]


CLIP = {"clip_low": 0.2, "clip_high": 0.2}
LOSSES: dict[str, LossFunction] = {
    "ppo_clip": PolicyLoss(partial(ppo_clip, **CLIP), kl_coef=0.1, entropy_coef=0.01),
    "gspo": PolicyLoss(partial(gspo, **CLIP)),
    "cispo": PolicyLoss(partial(cispo, **CLIP)),
    "sft": sft_loss,
    "dpo": partial(dpo_loss, beta=0.1, label_smoothing=0.1, kind="dpo"),
}
CUTS = ["budget 10000", "budget 100", "budget 70", "budget 1", "two ranks", "backwards"]


def paired(lengths: list[int]) -> list[Rollout]:
    return [
        replace(one, group_id=n // 2, attempt=n % 2, preference=PREFERENCES[n % 2])
        for n, one in enumerate(rollouts_of(lengths))
    ]


def columns(whole: TrainingBatch, given: list[Rollout], aggregation: Aggregation) -> TrainedTokens:
    samples = gather_table(given, OneRank())[0].samples()
    random = torch.Generator().manual_seed(3)
    advantages = torch.randn(len(given), generator=random)[whole.sample]
    behaviour, reference = torch.randn(2, len(whole.sample), generator=random) - 4
    weights = token_weights(whole.loss_mask, whole.sample, samples, aggregation, 20)
    nothing = torch.zeros(len(whole.sample)).int()
    return TrainedTokens(
        behaviour, advantages, weights, nothing, whole.sample, reference_logprobs=reference, pair=whole.pair
    )


def cut(whole: TrainingBatch, how: str, pairs: bool) -> list[PackedSequences]:
    """The same samples in other micro-batches, of one rank or of two, one of which has nothing to do at the end."""
    if how == "two ranks":
        first = torch.arange(len(whole.lengths)) < 10
        return [*pack(whole, 70, first, pairs), *pack(whole, 40, ~first, pairs), idle_pack()]
    parts = pack(whole, int(how.rsplit(maxsplit=1)[-1]) if how.startswith("budget") else 70, pairs=pairs)
    return parts[::-1] if how == "backwards" else parts


@pytest.mark.parametrize("aggregation", ["token", "rollout", "constant"])
@pytest.mark.parametrize("loss", [*LOSSES])
def test_loss_and_gradient_do_not_depend_on_how_the_step_is_cut(loss: str, aggregation: Aggregation) -> None:
    given = paired(LENGTHS)
    whole = training_batch(given)
    results: list[tuple[float, dict[str, torch.Tensor]]] = []
    for how in CUTS:
        model = PolicyModel(build(grouped_heads, NAME), 1.0, Entropy.LOSS)
        total = 0.0
        for part in with_columns(cut(whole, how, loss == "dpo"), columns(whole, given, aggregation)):
            value = LOSSES[loss](Predictions(*model(part.packed)), part.trained).loss
            value.backward()
            total += value.item()
        results.append((total, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}))
    expected = results[0][1]
    assert sum(float(gradient.norm()) for gradient in expected.values()) > 1e-3
    for value, gradients in results[1:]:
        assert value == pytest.approx(results[0][0], rel=1e-5, abs=1e-7)
        for name, gradient in gradients.items():
            assert (gradient - expected[name]).norm() <= 1e-5 * expected[name].norm(), name
