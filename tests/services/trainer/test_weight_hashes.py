"""Hashes by the names of an engine: fused and padded parameters, and the checksum that they make up."""

import hashlib

import pytest
import torch

from services.trainer.weight_hashes import checksum, digest, engine_checksums
from services.trainer.word_hash import word_hashes


def hash_of(tensor: torch.Tensor, engine: str) -> str:
    """What SGLang's `tensor_hash` does with a tensor on this type of device."""
    if engine == "cuda":
        return word_hashes([[tensor]])[0]
    return hashlib.sha256(tensor.contiguous().view(torch.uint8).numpy().tobytes()).digest()[:8].hex()


ENGINES = pytest.mark.parametrize("engine", ["cpu", "cuda"])


@ENGINES
def test_engine_hashes_are_of_the_fused_parameters(engine: str) -> None:
    layer = "model.layers.0"
    tensors = {
        f"{layer}.self_attn.{name}_proj.{kind}": torch.randn(*shape)
        for name in "qkv"
        for kind, shape in (("weight", (4, 8)), ("bias", (4,)))
    }
    tensors |= {f"{layer}.mlp.{name}_proj.weight": torch.randn(6, 8) for name in ("gate", "up", "down")}
    q, k, v = (tensors[f"{layer}.self_attn.{name}_proj.weight"] for name in "qkv")
    gate, up, down = (tensors[f"{layer}.mlp.{name}_proj.weight"] for name in ("gate", "up", "down"))
    hashes = engine_checksums(tensors, engine)
    assert hashes.keys() == {
        f"{layer}.self_attn.qkv_proj.weight",
        f"{layer}.self_attn.qkv_proj.bias",
        f"{layer}.mlp.gate_up_proj.weight",
        f"{layer}.mlp.down_proj.weight",
    }
    assert hashes[f"{layer}.self_attn.qkv_proj.weight"] == hash_of(torch.cat([q, k, v]), engine)
    assert hashes[f"{layer}.mlp.gate_up_proj.weight"] == hash_of(torch.cat([gate, up]), engine)
    assert hashes[f"{layer}.mlp.down_proj.weight"] == hash_of(down, engine)


@ENGINES
def test_engine_hashes_of_embeddings_cover_the_padding_that_engines_add(engine: str) -> None:
    embedding = torch.randn(259, 8).bfloat16()
    padded = torch.cat([embedding, torch.zeros(61, 8).bfloat16()])
    hashes = engine_checksums({"model.embed_tokens.weight": embedding, "lm_head.weight": embedding}, engine)
    assert hashes == dict.fromkeys(("model.embed_tokens.weight", "lm_head.weight"), hash_of(padded, engine))


@ENGINES
def test_the_checksum_depends_on_names_and_bytes_and_not_on_the_order(engine: str) -> None:
    one, other = torch.ones(4), torch.tensor([1.0, 1.0, 1.0, 1.0000001])
    both = {"a": one, "b": other}
    assert len({checksum(each, engine) for each in ({"a": one}, {"b": one}, {"a": other}, both)}) == 4
    assert checksum(dict(reversed(both.items())), engine) == checksum(both, engine)
    hashes = engine_checksums(both, engine)
    assert digest(hashes) == hashlib.sha256(f"a={hashes['a']}\nb={hashes['b']}\n".encode()).hexdigest()
