"""Packing: every trained token once, with its own columns; budgets kept; packed sequences do not see each other."""

from typing import Any

import numpy as np
import pytest
import torch
from services.trainer.losses.policy_clip import policy_clip_loss
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from services.trainer.losses.sft import sft_loss
from services.trainer.losses.token_loss import LossFunction
from services.trainer.losses.token_weights import Aggregation, token_weights
from services.trainer.packed_attention import NAME, plan_attention
from services.trainer.packing import balanced_parts, pack
from services.trainer.policy_model import PolicyModel
from services.trainer.training_batch import TrainingBatch

VOCABULARY = 97
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 1,
}


def qwen3() -> PreTrainedModel:
    return Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=16))


def llama() -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=True))


def mistral_with_a_window() -> PreTrainedModel:
    return MistralForCausalLM(MistralConfig(**SIZES, sliding_window=7))


def build(make: Any, attention: str) -> PreTrainedModel:
    torch.manual_seed(0)
    model = make().eval()
    model.set_attn_implementation(attention)
    return model


def batch(lengths: list[int], seed: int = 0) -> TrainingBatch:
    random = np.random.default_rng(seed)
    sizes = torch.tensor(lengths)
    total, attempt = sum(lengths), torch.repeat_interleave(torch.arange(len(lengths)), sizes)
    mask = torch.from_numpy(random.random(total) < 0.6)
    mask[sizes.cumsum(0) - sizes] = False
    return TrainingBatch(
        token_ids=torch.from_numpy(random.integers(0, VOCABULARY, total)),
        loss_mask=mask,
        old_logprobs=torch.from_numpy(random.normal(-4, 1, total).astype(np.float32)) * mask,
        versions=torch.arange(total, dtype=torch.int32),
        lengths=sizes,
        attempt=attempt,
        rewards=torch.from_numpy(random.random(len(lengths))),
        group=torch.arange(len(lengths)) // 4,
    )


LENGTHS = [5, 40, 17, 2, 33, 64, 9, 9, 1, 28, 13, 50, 3, 3, 21, 7]


@pytest.mark.parametrize("make", [qwen3, llama, mistral_with_a_window])
def test_packed_logprobs_and_gradients_equal_those_of_each_sequence_alone(make: Any) -> None:
    whole = batch(LENGTHS)
    packed_model, plain_model = build(make, NAME), build(make, "eager")
    (micro_batch,) = pack(whole, torch.ones(sum(LENGTHS)), torch.ones(sum(LENGTHS)), 10_000)
    logprobs = PolicyModel(packed_model, 0.7)(micro_batch)
    logprobs.sum().backward()
    by_place: dict[int, torch.Tensor] = {}
    for attempt, length in enumerate(LENGTHS):
        start = sum(LENGTHS[:attempt])
        ids = whole.token_ids[start : start + length]
        logits = plain_model(input_ids=ids[None], use_cache=False).logits[0, :-1] / 0.7
        alone = logits.log_softmax(-1).gather(1, ids[1:, None])[:, 0]
        by_place |= {start + 1 + i: alone[i] for i in range(length - 1) if whole.loss_mask[start + 1 + i]}
    expected = torch.stack([by_place[int(place)] for place in places(whole, micro_batch.trained.attempt)])
    expected.sum().backward()
    torch.testing.assert_close(logprobs, expected, rtol=1e-5, atol=1e-5)
    for (name, ours), theirs in zip(packed_model.named_parameters(), plain_model.parameters(), strict=True):
        torch.testing.assert_close(
            ours.grad, theirs.grad, rtol=1e-4, atol=1e-5 * float(theirs.grad.abs().max()), msg=name
        )


def places(whole: TrainingBatch, attempts: torch.Tensor) -> list[int]:
    """Where the trained tokens of a micro-batch, given by their attempts, stand in the batch."""
    order = list(dict.fromkeys(attempts.tolist()))
    return [int(p) for a in order for p in torch.nonzero(whole.loss_mask & (whole.attempt == a)).flatten()]


def test_a_change_in_one_sequence_changes_no_other() -> None:
    model = PolicyModel(build(qwen3, NAME), 1.0)
    before = batch([12, 30, 30, 11])
    after = batch([12, 30, 30, 11])
    after.token_ids[12:42] = 5
    old, new = (pack(b, torch.ones(83), torch.ones(83), 1000)[0] for b in (before, after))
    others = old.trained.attempt != 1
    with torch.no_grad():
        torch.testing.assert_close(model(old)[others], model(new)[others], rtol=0, atol=0)


@pytest.mark.parametrize("max_tokens", [16, 64, 90, 1000])
def test_every_trained_token_is_packed_once_with_its_own_columns(max_tokens: int) -> None:
    whole = batch(LENGTHS)
    total = sum(LENGTHS)
    advantages, weights = torch.arange(total).float(), -torch.arange(total).float()
    parts = pack(whole, advantages, weights, max_tokens)
    seen = torch.cat([part.trained.advantages for part in parts]).long()
    assert sorted(seen.tolist()) == torch.nonzero(whole.loss_mask).flatten().tolist()
    for part in parts:
        place = part.trained.advantages.long()
        assert torch.equal(part.trained.weights, -part.trained.advantages)
        assert torch.equal(part.targets, whole.token_ids[place])
        assert torch.equal(part.token_ids[part.rows], whole.token_ids[place - 1])
        assert torch.equal(part.trained.old_logprobs, whole.old_logprobs[place])
        assert torch.equal(part.trained.attempt, whole.attempt[place])
        assert len(part.token_ids) <= max_tokens or len(part.cu_seqlens) == 2
        assert part.position_ids[part.cu_seqlens[:-1].long()].tolist() == [0] * (len(part.cu_seqlens) - 1)


def test_parts_are_as_few_as_the_budget_allows_and_about_equal() -> None:
    assert balanced_parts([30, 30, 30, 30], 100) == [(0, 2), (2, 4)]
    assert balanced_parts([500, 30, 30], 100) == [(0, 1), (1, 3)]
    assert balanced_parts([], 100) == []


def test_similar_lengths_share_a_padded_batch_and_different_ones_do_not() -> None:
    buckets = plan_attention([400, 390, 100, 99, 3, 2])
    assert [(bucket.first, bucket.sequences, bucket.longest) for bucket in buckets] == [
        (0, 2, 400),
        (790, 2, 100),
        (989, 2, 3),
    ]


def clip(logprobs: torch.Tensor, trained: Any) -> Any:
    return policy_clip_loss(logprobs, trained, clip_low=0.2, clip_high=0.2)


@pytest.mark.parametrize("aggregation", ["token", "rollout"])
@pytest.mark.parametrize("loss", [clip, sft_loss], ids=["policy_clip", "sft"])
def test_loss_and_gradient_do_not_depend_on_how_the_step_is_cut(loss: LossFunction, aggregation: Aggregation) -> None:
    whole = batch(LENGTHS)
    weights = token_weights(whole.loss_mask, whole.attempt, aggregation)
    advantages = torch.randn(len(LENGTHS), generator=torch.Generator().manual_seed(3))[whole.attempt]
    results: list[tuple[float, dict[str, torch.Tensor]]] = []
    for max_tokens in (10_000, 100, 70, 1):
        model = build(qwen3, NAME)
        total = 0.0
        for part in pack(whole, advantages, weights, max_tokens):
            value = loss(PolicyModel(model, 1.0)(part), part.trained).loss
            value.backward()
            total += value.item()
        results.append((total, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}))
    for value, gradients in results[1:]:
        assert value == pytest.approx(results[0][0], rel=1e-5, abs=1e-7)
        for name, gradient in gradients.items():
            expected = results[0][1][name]
            assert (gradient - expected).norm() <= 1e-5 * expected.norm(), name
