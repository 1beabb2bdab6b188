"""The pull of a teacher, token by token."""

import torch

from services.trainer.advantages.distill import distill
from tests.services.trainer.ragged import ragged


def test_trained_tokens_that_the_teacher_finds_less_likely_lose_advantage() -> None:
    batch = ragged(11)
    advantages, student, teacher = batch.column(1), batch.column(2), batch.column(3)
    ours = distill(advantages, student, teacher, batch.mask, 0.5).tolist()
    for t, trained in enumerate(batch.mask.tolist()):
        pull = 0.5 * (student[t].item() - teacher[t].item()) if trained else 0.0
        assert ours[t] == advantages[t].item() - pull


def test_a_teacher_that_agrees_changes_nothing() -> None:
    batch = ragged(11)
    student = batch.column(2)
    assert torch.equal(distill(batch.column(1), student, student, batch.mask, 2.0), batch.column(1))
