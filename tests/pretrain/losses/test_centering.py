"""Softmax centering and Sinkhorn-Knopp against plain float64 loops."""

import pytest
import torch

from pretrain.losses.centering import SinkhornKnopp, SoftmaxCentering
from tests.pretrain.losses.loops import logits


def sinkhorn_loop(values, temperature, iterations=3):
    """The published loop in float64: Q is prototypes x rows."""
    q = torch.exp(values.double() / temperature).T
    q /= q.sum()
    prototypes, rows = q.shape
    for _ in range(iterations):
        q /= q.sum(1, keepdim=True) * prototypes
        q /= q.sum(0, keepdim=True) * rows
    return (q * rows).T


@pytest.mark.parametrize("rows", [1, 7, 40])
def test_sinkhorn_is_the_published_loop(rows):
    values = logits(rows, 12)
    ours = SinkhornKnopp()(values, 0.05)
    torch.testing.assert_close(ours.double(), sinkhorn_loop(values, 0.05), rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(ours.sum(1), torch.ones(rows), rtol=1e-5, atol=0)


def test_sinkhorn_does_not_overflow_and_takes_no_rows():
    extreme = torch.tensor([[100.0, -100.0, 0.0], [-100.0, 100.0, 5.0]])
    assert torch.isfinite(SinkhornKnopp()(extreme, 0.04)).all()
    assert SinkhornKnopp()(torch.zeros(0, 3), 0.04).shape == (0, 3)


def test_softmax_centering_uses_past_batches_only():
    centering, center = SoftmaxCentering(4, momentum=0.9), torch.zeros(4, dtype=torch.float64)
    for step in range(4):
        batch = logits(6, 4, seed=step)
        expected = ((batch.double() - center) / 0.04).softmax(-1)
        torch.testing.assert_close(centering(batch, 0.04).double(), expected, rtol=1e-4, atol=1e-6)
        if step == 2:
            centering.discard()  # a skipped step leaves no trace
        else:
            centering.update()
            center = 0.9 * center + 0.1 * batch.double().mean(0)
    torch.testing.assert_close(centering.center[0].double(), center, rtol=1e-5, atol=1e-7)


def test_center_of_several_micro_batches_is_their_mean():
    tokens, ranks = SoftmaxCentering(3, 0.5, "tokens"), SoftmaxCentering(3, 0.5, "ranks")
    small, large = logits(2, 3, seed=3), logits(6, 3, seed=4)
    for centering in (tokens, ranks):
        centering(small, 0.1)
        centering(large, 0.1)
        centering(torch.zeros(0, 3), 0.1)
        centering.update()
    torch.testing.assert_close(tokens.center, 0.5 * torch.cat([small, large]).mean(0, keepdim=True))
    torch.testing.assert_close(ranks.center, 0.25 * (small.mean(0) + large.mean(0))[None])
