"""Scores of tokens in chunks: the same log-probabilities, entropies and gradients as from all logits at once."""

import pytest
import torch
from torch import nn

from services.trainer import token_scores as scores
from services.trainer.token_scores import Entropy, LogitHead

ROWS, HIDDEN, VOCABULARY = 23, 12, 50
TEMPERATURE = 0.6


def inputs(dtype: torch.dtype = torch.float64) -> tuple[nn.Linear, torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    head = nn.Linear(HIDDEN, VOCABULARY, bias=False, dtype=dtype)
    with torch.no_grad():
        head.weight.copy_(torch.randn(VOCABULARY, HIDDEN, generator=random))
    hidden = torch.randn(ROWS, HIDDEN, generator=random).to(dtype)
    return head, hidden.requires_grad_(), torch.randint(0, VOCABULARY, (ROWS,), generator=random)


def scored(
    chunk_rows: int, entropy: Entropy, monkeypatch: pytest.MonkeyPatch, keep: bool = False
) -> list[torch.Tensor]:
    """Log-probabilities, entropies, and the gradients of the hidden states and of the head."""
    monkeypatch.setattr(scores, "CHUNK_ELEMENTS", {"cpu": chunk_rows * VOCABULARY})
    head, hidden, targets = inputs(torch.float32)
    made = scores.token_scores(
        LogitHead(head, 1.0, None), hidden, targets, TEMPERATURE, entropy, scores.chunk_scores, keep
    )
    loss = (made[0] * torch.linspace(-1, 1, ROWS)).sum()
    loss = loss + (made[1].sum() if entropy is Entropy.LOSS else 0.0)
    return [made[0].detach(), made[1].detach(), *torch.autograd.grad(loss, [hidden, head.weight])]


@pytest.mark.parametrize("entropy", list(Entropy))
@pytest.mark.parametrize(("chunk_rows", "keep"), [(1, False), (7, False), (22, False), (7, True)])
def test_chunks_change_nothing(chunk_rows: int, keep: bool, entropy: Entropy, monkeypatch: pytest.MonkeyPatch) -> None:
    at_once, parts = scored(1000, entropy, monkeypatch), scored(chunk_rows, entropy, monkeypatch, keep)
    for whole, chunked in zip(at_once, parts, strict=True):
        assert (chunked - whole).norm() <= 1e-5 * whole.norm()


def test_scores_are_those_of_the_whole_distribution() -> None:
    head, hidden, targets = inputs()
    logits = (hidden @ head.weight.T) / TEMPERATURE
    distribution = torch.distributions.Categorical(logits=logits)
    logprobs, entropy = scores.chunk_scores(LogitHead(head, 1.0, None), hidden, targets, TEMPERATURE, Entropy.METRIC)
    torch.testing.assert_close(logprobs, distribution.log_prob(targets).float(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(entropy, distribution.entropy().float(), rtol=1e-5, atol=1e-5)


def test_only_the_entropy_of_the_loss_has_a_gradient() -> None:
    head, hidden, targets = inputs(torch.float32)
    made = {
        which: scores.chunk_scores(LogitHead(head, 1.0, None), hidden, targets, TEMPERATURE, which)[1]
        for which in Entropy
    }
    assert len(made[Entropy.NONE]) == 0
    assert not made[Entropy.METRIC].requires_grad
    assert made[Entropy.LOSS].requires_grad
    torch.testing.assert_close(made[Entropy.METRIC], made[Entropy.LOSS].detach())


def test_logits_are_scaled_and_capped_as_the_model_does() -> None:
    head, hidden, _ = inputs()
    expected = torch.tanh(hidden @ head.weight.T * 3 / 5) * 5
    torch.testing.assert_close(LogitHead(head, 3.0, 5.0).logits(hidden), expected)


class Heads(nn.Linear):
    """Counts how often logits are made."""

    calls = 0

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return super().forward(input)


@pytest.mark.parametrize(("keep", "limit", "calls"), [(False, 2**32, 8), (True, 2**32, 4), (True, 1000, 8)])
def test_logits_are_made_again_unless_they_are_to_be_kept_and_few_enough(
    keep: bool, limit: int, calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scores, "CHUNK_ELEMENTS", {"cpu": 6 * VOCABULARY})
    monkeypatch.setattr(scores, "KEPT_CHUNK_ELEMENTS", 6 * VOCABULARY)
    monkeypatch.setattr(scores, "KEPT_ELEMENTS", limit)
    _, hidden, targets = inputs(torch.float32)
    head = Heads(HIDDEN, VOCABULARY)
    made = scores.token_scores(
        LogitHead(head, 1.0, None), hidden, targets, TEMPERATURE, Entropy.NONE, scores.chunk_scores, keep
    )
    made[0].sum().backward()
    assert head.calls == calls


def test_no_row_is_no_score() -> None:
    head, hidden, targets = inputs(torch.float32)
    logprobs, entropy = scores.token_scores(
        LogitHead(head, 1.0, None), hidden[:0], targets[:0], TEMPERATURE, Entropy.LOSS, scores.chunk_scores
    )
    assert len(logprobs) == len(entropy) == 0
