"""Packed sequences -> a value for each trained token: a language model's body with one number for its head."""

from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel

from services.trainer.packing import PackedSequences
from services.trainer.scoring_model import ScoringModel

INIT_STD = 0.02


class ValueModel(ScoringModel):
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
        # a copy: sharding hooks hang on what is returned, and an operation in place on a view would drop them
        values = self.head(hidden[packed.rows]).squeeze(-1).float().clone()
        return values.new_zeros(0), None, values
