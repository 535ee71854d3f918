"""iBOT's loss against a plain loop written from its formula."""

import pytest
import torch

from pretrain.losses.ibot import ibot_loss, masked_token_weights
from tests.pretrain.losses.loops import cross_entropy, logits, probabilities


@pytest.mark.parametrize("weighting", ["published", "masked_crops"])
def test_ibot_loss_is_its_loop(weighting):
    masks = torch.tensor([[1, 1, 0, 1], [0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]], dtype=torch.bool)
    weights = masked_token_weights(masks)
    assert weights.tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3, 1.0])
    teacher, student = probabilities(4, 6), logits(4, 6)
    per_crop = [
        sum(cross_entropy(teacher[m], student[m]) for m in range(3)) / 3,
        cross_entropy(teacher[3], student[3]),
    ]
    expected = sum(per_crop) / (4 if weighting == "published" else 2)
    assert ibot_loss(student, teacher, weights, 4, weighting=weighting).item() == pytest.approx(
        expected, rel=1e-5
    )


def test_ibot_without_masks_is_zero_and_connected():
    student = torch.zeros(0, 6, requires_grad=True)
    loss = ibot_loss(student, torch.zeros(0, 6), torch.zeros(0), 4)
    loss.backward()
    assert loss.item() == 0 and student.grad.shape == (0, 6)
