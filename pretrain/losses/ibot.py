"""iBOT's cross-entropy on masked patches."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F


def ibot_loss(
    student_logits: Tensor,
    teacher_probs: Tensor,
    weights: Tensor,
    num_crops: int,
    student_temp: float = 0.1,
    weighting: Literal["published", "masked_crops"] = "published",
) -> Tensor:
    """Cross-entropy on masked patches, averaged within each crop and then over crops (iBOT, eq. 2;
    DINOv2 `loss/ibot_patch_loss.py`), a scalar.

        sum over m of weights[m] * -sum_k teacher[m, k] * log_softmax(student[m] / temp)[k] / crops

    Args:
        student_logits, teacher_probs: `[M, K]`, the masked patches of all crops.
        weights: `[M]` from `masked_token_weights`.
        num_crops: all global crops, which the published code divides by although half of them have
            no mask.
        weighting: "masked_crops" divides by the crops that have a mask, the mean that the paper
            describes.

    M = 0 gives 0, connected to the graph.
    """
    log_probs = F.log_softmax(student_logits.float() / student_temp, dim=-1)  # [M, K]
    cross_entropy = -(teacher_probs * log_probs).sum(-1)  # [M]
    crops = num_crops if weighting == "published" else weights.sum().clamp_min(1)
    return (cross_entropy * weights).sum() / crops


def masked_token_weights(masks: Tensor) -> Tensor:
    """1 / (masked patches of its crop) of each masked patch, `[M]`, in flat order. masks:
    `[crops, N]` bool."""
    per_crop = 1 / masks.sum(-1, keepdim=True).clamp_min(1).to(torch.float32)  # [crops, 1]
    return per_crop.expand_as(masks)[masks]  # [M]
