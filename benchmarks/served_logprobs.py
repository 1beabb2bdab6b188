"""A served model and the weights that it was given -> how far its log-probabilities are from a plain forward's."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from services.trainer.fp8_blocks import from_blocks
from shared.fp8_checkpoint import SCALE, scale_name

TOKENS, SEQUENCES = 512, 4
DEADLINE_S = 60.0


async def logprob_gap(
    address: str, folder: Path, published: Mapping[str, torch.Tensor], device: torch.device
) -> dict[str, float]:
    """Of random tokens: mean and largest difference, and the standard deviation of the log-probabilities themselves.

    Args:
        published: what the engine was given; the forward is with what that stands for.
        device: where the forward is.
    """
    vocabulary = int(json.loads((folder / "config.json").read_text("utf-8"))["vocab_size"])
    ids = torch.randint(vocabulary, (SEQUENCES, TOKENS), generator=torch.Generator().manual_seed(3))
    served, computed = await _served(address, ids), _computed(folder, published, ids.to(device))
    gap = (served - computed).abs()
    return {"mean": float(gap.mean()), "max": float(gap.max()), "spread": float(computed.std()), "tokens": gap.numel()}


async def _served(address: str, ids: torch.Tensor) -> torch.Tensor:
    body = {
        "input_ids": ids.tolist(),
        "sampling_params": {"max_new_tokens": 1, "temperature": 1.0},
        "return_logprob": True,
        "logprob_start_len": 0,
    }
    async with httpx.AsyncClient(timeout=DEADLINE_S, trust_env=False) as http:
        answers: list[dict[str, Any]] = (await http.post(f"{address}/generate", json=body)).raise_for_status().json()
    return torch.tensor([[entry[0] for entry in one["meta_info"]["input_token_logprobs"][1:]] for one in answers])


@torch.no_grad()
def _computed(folder: Path, published: Mapping[str, torch.Tensor], ids: torch.Tensor) -> torch.Tensor:
    meant = {
        name: from_blocks(tensor, published[scale_name(name)]) if scale_name(name) in published else tensor
        for name, tensor in published.items()
        if not name.endswith(SCALE)
    }
    with ids.device:
        model: Any = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder), dtype=_widest(meant))
    model.load_state_dict(meant, strict=False)
    model.tie_weights()
    logits = model.eval()(ids).logits[:, :-1].float()
    return logits.log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0].cpu()


def _widest(tensors: Mapping[str, torch.Tensor]) -> torch.dtype:
    return max((tensor.dtype for tensor in tensors.values()), key=lambda dtype: dtype.itemsize)
