"""Random samples of given lengths in one pack, small models that differ in their attention, and one pass of both."""

import numpy as np
import torch
from transformers import MistralConfig, MistralForCausalLM, PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from services.trainer.packed_attention import NAME
from services.trainer.packing import PackedSequences, pack
from services.trainer.policy_model import PolicyModel
from services.trainer.token_scores import Entropy
from services.trainer.training_batch import training_batch
from shared.messages import Rollout, spans

VOCABULARY = 97
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 1024,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 1,
}


def pack_of(lengths: list[int], seed: int = 0) -> PackedSequences:
    """One pack; about 6 of 10 tokens are trained, and one at least of each sequence that has more than one."""
    (packed,) = pack(training_batch(rollouts_of(lengths, seed)), sum(lengths))
    return packed


def rollouts_of(lengths: list[int], seed: int = 0) -> list[Rollout]:
    """One of each length, prompt and response together, as groups of one."""
    random = np.random.default_rng(seed)
    return [_rollout(number, length, random) for number, length in enumerate(lengths)]


def _rollout(number: int, length: int, random: np.random.Generator) -> Rollout:
    ids = random.integers(0, VOCABULARY, length).astype(np.int32)
    mask = (random.random(length - 1) < 0.6).astype(int)
    mask[:1] = 1
    return Rollout(
        group_id=number,
        attempt=0,
        group_size=1,
        kind="train",
        dataset="random",
        row=number,
        prompt="",
        label=None,
        metadata={},
        prompt_ids=ids[:1],
        token_ids=ids[1:],
        logprobs=np.zeros(length - 1, np.float32),
        loss_mask=spans(mask.tolist()),
        weight_versions=spans([0] * (length - 1)),
        finish_reason="length",
        text="",
        worker="test",
        seconds=0.0,
    )


def grouped_heads() -> PreTrainedModel:
    torch.manual_seed(0)
    return Qwen3ForCausalLM(Qwen3Config(**SIZES, tie_word_embeddings=True))


def with_a_window() -> PreTrainedModel:
    torch.manual_seed(0)
    return MistralForCausalLM(MistralConfig(**SIZES, sliding_window=7))


def policy(core: PreTrainedModel, entropy: Entropy = Entropy.LOSS) -> PolicyModel:
    core.set_attn_implementation(NAME)
    return PolicyModel(core.eval(), 0.7, entropy)


def passed(model: PolicyModel, packed: PackedSequences) -> dict[str, torch.Tensor]:
    """One forward and backward pass: log-probabilities, entropies, and gradients by their parameters' names."""
    model.zero_grad()
    logprobs, entropy = model(packed.to(model.core.device))
    total = logprobs.sum() if entropy is None else logprobs.sum() + 0.1 * entropy.sum()
    total.backward()
    said = {"logprobs": logprobs.detach()} | ({} if entropy is None else {"entropy": entropy.detach()})
    return said | {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_near(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], share: float) -> None:
    """The norm of each difference is at most this share of the norm of what is expected."""
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        wanted = tensor.double().cpu()
        assert (found[name].double().cpu() - wanted).norm() <= share * wanted.norm(), name
