"""Every loss, centering and schedule against a plain float64 loop written from its formula, and the
spec's known values."""

import math

import pytest
import torch

from pretrain.losses.centering import SinkhornKnopp, SoftmaxCentering
from pretrain.losses.dino import dino_loss, num_loss_terms
from pretrain.losses.ibot import ibot_loss, masked_token_weights
from pretrain.losses.koleo import koleo_loss


def probabilities(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).softmax(-1)


def logits(*shape, seed=1):
    return 0.3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def cross_entropy(teacher, student, temp=0.1):
    """-sum_k t_k log softmax(s / temp)_k in plain floats."""
    scaled = [value / temp for value in student.tolist()]
    top = max(scaled)
    log_sum = top + math.log(sum(math.exp(value - top) for value in scaled))
    return -sum(t * (s - log_sum) for t, s in zip(teacher.tolist(), scaled, strict=True))


@pytest.mark.parametrize("skip_same_view", [True, False])
def test_dino_loss_is_its_loop(skip_same_view):
    teacher, student = probabilities(2, 5, 7), logits(2 if skip_same_view else 4, 5, 7)
    expected = 0.0
    for s in range(len(student)):
        for g in range(2):
            if not (skip_same_view and s == g):
                expected += sum(cross_entropy(teacher[g, b], student[s, b]) for b in range(5)) / 5
    assert dino_loss(student, teacher, skip_same_view).item() == pytest.approx(expected, rel=1e-5)


def test_loss_terms_are_the_published_ones():
    assert num_loss_terms(2, 8) == 18
    assert num_loss_terms(2, 0) == 3


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


@pytest.mark.parametrize("prototypes", [1024])
def test_uniform_outputs_give_the_specs_losses(prototypes):
    """spec 6: local 16/18 ln K, global 2/18 ln K, iBOT ln K / 2 with half of the crops masked."""
    uniform, log_k = torch.full((2, 3, prototypes), 1 / prototypes), math.log(prototypes)
    local = dino_loss(torch.zeros(8, 3, prototypes), uniform, False) / num_loss_terms(2, 8)
    across = dino_loss(torch.zeros(2, 3, prototypes), uniform, True) / num_loss_terms(2, 8)
    assert local.item() == pytest.approx(16 / 18 * log_k, rel=1e-5)
    assert across.item() == pytest.approx(2 / 18 * log_k, rel=1e-5)
    masks = torch.zeros(6, 4, dtype=torch.bool)
    masks[:3, :2] = True
    patches = ibot_loss(torch.zeros(6, prototypes), uniform.flatten(0, 1), masked_token_weights(masks), 6)
    assert patches.item() == pytest.approx(0.5 * log_k, rel=1e-5)
