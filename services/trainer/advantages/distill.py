"""Advantages and a teacher's log-probabilities -> advantages that also pull the policy towards the teacher."""

import torch


def distill(
    advantages: torch.Tensor, student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor, coef: float
) -> torch.Tensor:
    """A_t - coef * (student_t - teacher_t) at trained tokens: one sample of the reverse KL; [tokens] float64.

    Source: Agarwal et al. 2024 (On-policy distillation, GKD), equation 3 with the reverse KL, its gradient taken as a
    policy gradient as in Gu et al. 2024 (MiniLLM), equation 2. Works with every estimator; before `whiten`, if any.

    Args:
        advantages: [tokens].
        student: [tokens] log-probabilities of the sampled tokens under the policy that the step starts from.
        teacher: [tokens], of the same tokens under the teacher, which has the same vocabulary.
        mask: [tokens] bool, True where the token is trained.
    """
    pull = coef * (student.double() - teacher.double())
    return advantages.double() - torch.where(mask, pull, 0.0)
