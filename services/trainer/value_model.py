"""Packed sequences -> a value for each trained token: a language model's body with one number for its head."""

from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedModel

from services.trainer.packing import PackedSequences

HEAD_FILE = "value_head.safetensors"
INIT_STD = 0.02


class ValueModel(nn.Module):
    """V(s_t), s_t being the tokens before the trained token t (Schulman et al. 2016, GAE, section 2)."""

    def __init__(self, causal_lm: PreTrainedModel, seed: int) -> None:
        """Only the body of `causal_lm` is kept; the head is drawn from N(0, 0.02), its bias is 0."""
        super().__init__()
        self.core = cast(PreTrainedModel, causal_lm.get_decoder())
        width = cast(int, causal_lm.config.get_text_config().hidden_size)
        self.head = nn.Linear(width, 1).to(causal_lm.device)
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.head.weight.copy_(torch.randn(1, width) * INIT_STD)
            self.head.bias.zero_()

    def forward(self, packed: PackedSequences) -> tuple[torch.Tensor, None, torch.Tensor]:
        """The fields of Predictions: no log-probabilities, no entropy, values [trained] float32."""
        call: dict[str, Any] = {"position_ids": packed.position_ids[None], "packed": packed.attention}
        hidden = self.core(input_ids=packed.token_ids[None], use_cache=False, **call).last_hidden_state[0]
        values = self.head(hidden[packed.rows]).squeeze(-1).float()
        return values.new_zeros(0), None, values


def load_head(model: ValueModel, folder: Path) -> bool:
    """Take the head of an exported critic; False if the folder holds none, and the head stays as it was drawn."""
    file = folder / HEAD_FILE
    if not file.is_file():
        return False
    stored = load_file(file)
    with torch.no_grad():
        model.head.weight.copy_(stored["weight"])
        model.head.bias.copy_(stored["bias"])
    return True
