"""KoLeo against a plain loop written from its formula."""

import math

import pytest
import torch

from pretrain.losses.koleo import koleo_loss
from tests.pretrain.losses.loops import logits


def koleo_loop(features):
    rows = [
        [value / math.sqrt(sum(v * v for v in row)) for value in row] for row in features.double().tolist()
    ]
    total = 0.0
    for i, row in enumerate(rows):
        dots = [
            -1.0 if i == j else sum(a * b for a, b in zip(row, other, strict=True))
            for j, other in enumerate(rows)
        ]
        nearest = rows[dots.index(max(dots))]
        distance = math.sqrt(sum((a - b + 1e-8) ** 2 for a, b in zip(row, nearest, strict=True)))
        total -= math.log(distance + 1e-8)
    return total / len(rows)


def test_koleo_is_its_loop():
    features = logits(9, 5)
    assert koleo_loss(features).item() == pytest.approx(koleo_loop(features), rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_koleo_of_duplicates_is_finite_with_finite_gradient(dtype):
    features = logits(4, 8).to(dtype).repeat(2, 1).requires_grad_()
    loss = koleo_loss(features)
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(features.grad).all()


def test_koleo_of_one_image_is_zero_and_connected():
    features = logits(1, 8).requires_grad_()
    koleo_loss(features).backward()
    assert features.grad.abs().sum() == 0
