"""DINO's cross-entropy between crops of the same image."""

from torch import Tensor
from torch.nn import functional as F


def dino_loss(
    student_logits: Tensor, teacher_probs: Tensor, skip_same_view: bool, student_temp: float = 0.1
) -> Tensor:
    """Sum over pairs (student crop, teacher crop) of the mean cross-entropy over images (DINO,
    eq. 3), a scalar.

        loss = 0
        for s, g in pairs:    # without s == g where skip_same_view
            loss += mean over b of -sum_k teacher[g, b, k] * log_softmax(student[s, b] / temp)[k]

    Args:
        student_logits: `[S, B, K]`.
        teacher_probs: `[G, B, K]`, float32.
        skip_same_view: leave out the pairs s == g: the student's global crops are the teacher's.
    """
    targets = teacher_probs.sum(0)  # [B, K]
    total = student_logits.new_zeros((), dtype=targets.dtype)
    for view, logits in enumerate(student_logits):
        # the sum over teacher crops moves inside: one log-softmax serves all pairs of a student crop
        target = targets - teacher_probs[view] if skip_same_view else targets  # [B, K]
        total = total - (target * F.log_softmax(logits.float() / student_temp, dim=-1)).sum(-1).mean()
    return total


def num_loss_terms(num_global: int, num_local: int) -> int:
    """The number of pairs that the DINO loss is divided by: every local crop with every global one,
    and the cross pairs of global crops."""
    return max(num_local * num_global, 1) + (num_global - 1) * num_global
