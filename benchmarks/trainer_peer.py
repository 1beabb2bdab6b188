"""A model's folder -> steps of plain transformers, the usual way: padded batches, autocast, all logits at once."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import AutoModelForCausalLM

from benchmarks.trainer_product import LEARNING_RATE
from benchmarks.trainer_samples import GRPO_LOSS, StepSamples
from benchmarks.trainer_shapes import MICRO_BATCHES
from services.trainer.losses.token_loss import Predictions, TrainedTokens
from services.trainer.packing import select
from services.trainer.training_batch import TrainingBatch

PADDING = 0


def peer_step(folder: Path, device: torch.device, recompute: bool) -> Callable[[StepSamples], dict[str, float]]:
    """(samples of a step) -> its metrics; as many micro-batches, samples and tokens as the product's steps have."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")
    model = model.to(device).train()
    model.config.use_cache = False
    if recompute:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.0, fused=True)

    def step(samples: StepSamples) -> dict[str, float]:
        total, count = torch.zeros((), device=device), len(samples.batch.lengths)
        for chosen in torch.arange(count).tensor_split(min(MICRO_BATCHES, count)):
            loss = _loss(model, samples.batch, samples.columns, chosen, device)
            loss.backward()
            total += loss.detach()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return {"loss": float(total), "grad_norm": float(norm)}

    return step


def _loss(
    model: nn.Module, batch: TrainingBatch, columns: TrainedTokens, chosen: torch.Tensor, device: torch.device
) -> torch.Tensor:
    """Of the samples `chosen`, padded on the right to the longest of them."""
    samples = [torch.nonzero(batch.sample == number).flatten() for number in chosen.tolist()]
    ids = nn.utils.rnn.pad_sequence([batch.token_ids[s] for s in samples], batch_first=True, padding_value=PADDING)
    mask = nn.utils.rnn.pad_sequence([torch.ones(len(s)) for s in samples], batch_first=True).long()
    ids, mask = ids.to(device), mask.to(device)
    with torch.autocast(device.type, torch.bfloat16):
        logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1]
    # one sample after the other, so that no more than one is copied to float32 at a time
    logprobs = [
        -functional.cross_entropy(row[: len(s) - 1].float(), wanted[1 : len(s)], reduction="none")
        for row, wanted, s in zip(logits, ids, samples, strict=True)
    ]
    trained = torch.cat([s[1:] for s in samples])
    return GRPO_LOSS(Predictions(torch.cat(logprobs)), select(columns, trained, device)).loss
