import math

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from encoders.evaluation import linear
from encoders.evaluation.linear import HeadGroup, hold_out, linear_probe, logistic_regression, train_heads
from vision_core.errors import UserError


@pytest.fixture(scope="module")
def digits():
    """Handwritten digits at 8 x 8, 1,300 to train on and 497 to test on."""
    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    features = torch.tensor(data.data[order] / 16, dtype=torch.float32)
    labels = torch.tensor(data.target[order])
    return features[:1300], labels[:1300], features[1300:], labels[1300:]


def slow_head(inputs, labels, num_classes, iterations, seed, rate):
    """One head alone, by autograd and torch's SGD, in float64, on the same batches."""
    generator = torch.Generator().manual_seed(seed)
    weight = (0.01 * torch.randn(inputs.shape[1], num_classes, generator=generator)).double().requires_grad_()
    bias = torch.zeros(num_classes, dtype=torch.double, requires_grad=True)
    optimizer = torch.optim.SGD([weight, bias], lr=1.0, momentum=0.9)
    for step, batch in enumerate(linear._batches(len(inputs), iterations, seed)):
        optimizer.param_groups[0]["lr"] = rate * 128 / 256 * (1 + math.cos(math.pi * step / iterations)) / 2
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(inputs[batch].double() @ weight + bias, labels[batch]).backward()
        optimizer.step()
    return weight.detach(), bias.detach()


def test_heads_together_are_heads_alone(digits):
    features, labels = digits[0][:300], digits[1][:300]
    weight, bias = train_heads(features, labels, 10, 20, 3)
    for number in (0, 6, 12):
        expected = slow_head(features, labels, 10, 20, 3, linear.LEARNING_RATES[number])
        torch.testing.assert_close(weight[number].double(), expected[0], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(bias[number].double(), expected[1], rtol=1e-4, atol=1e-6)


def test_the_published_grid_has_52_heads_and_reads_what_it_says(digits):
    blocks = [torch.full((5, 2), float(number)) for number in range(4)]
    mean = torch.full((5, 3), 9.0)
    assert HeadGroup(4, True).inputs(blocks, mean)[0].tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 9, 9, 9]
    assert HeadGroup(1, False).inputs(blocks, mean)[0].tolist() == [3, 3]
    train, labels, test, test_labels = digits
    result = linear_probe([train] * 4, train, labels, [test] * 4, test, test_labels, iterations=20)
    assert (
        len(result.table) == 52
        and len({(row["learning_rate"], row["blocks"], row["with_patch_mean"]) for row in result.table}) == 52
    )
    assert result.chosen["held_out_top1"] == max(row["held_out_top1"] for row in result.table)
    assert len(linear_probe([train], train, labels, [test], test, test_labels, iterations=5).table) == 26


def test_within_half_a_point_of_scikit_learn():
    """Ten overlapping classes, enough test images that half a point is not chance."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(10, 24, generator=generator)
    labels = torch.arange(12_000) % 10
    features = centres[labels] + 1.4 * torch.randn(12_000, 24, generator=generator)
    train, test = features[:4000], features[4000:]
    model = LogisticRegression(max_iter=5000).fit(train.numpy(), labels[:4000].numpy())
    expected = 100 * model.score(test.numpy(), labels[4000:].numpy())
    probe = linear_probe([train], train, labels[:4000], [test], test, labels[4000:], iterations=500)
    regression = logistic_regression(train, labels[:4000], test, labels[4000:])
    assert 80 < expected < 95
    assert (
        abs(probe.top1 - expected) <= 0.5
        and abs(regression.top1 - expected) <= 0.5
        and probe.top5 > probe.top1
    )


def test_it_is_a_function_of_its_seed(digits):
    train, labels, test, test_labels = digits
    first, again, other = (
        linear_probe([train], train, labels, [test], test, test_labels, iterations=10, seed=seed)
        for seed in (0, 0, 1)
    )
    assert first == again and first.table != other.table


def test_a_tenth_of_each_class_is_held_out():
    labels = torch.tensor([0] * 40 + [1] * 10 + [2] * 2)
    kept, held_out = hold_out(labels, 0)
    assert sorted(kept.tolist() + held_out.tolist()) == list(range(52))
    assert [(labels[held_out] == label).sum().item() for label in range(3)] == [4, 1, 1]


def test_a_test_label_that_was_never_seen_is_a_mistake_not_a_crash(digits):
    train, labels, test, test_labels = digits
    seen = labels != 9
    result = logistic_regression(train[seen], labels[seen], test, test_labels, cs=[1.0])
    assert 80 < result.top1 < 95


def test_bad_input(digits):
    train, labels, test, test_labels = digits
    with pytest.raises(UserError, match="1300 features and 10 labels"):
        linear_probe([train], train, labels[:10], [test], test, test_labels)
    with pytest.raises(UserError, match="all images have one label"):
        linear_probe([train], train, labels * 0, [test], test, test_labels)
    with pytest.raises(UserError, match="class 77 has one training image"):
        linear_probe(
            [train], train, torch.where(torch.arange(1300) == 5, 77, labels), [test], test, test_labels
        )
    broken = train.clone()
    broken[3, 3] = float("nan")
    for call in (
        lambda: linear_probe([broken], train, labels, [test], test, test_labels),
        lambda: logistic_regression(broken, labels, test, test_labels),
    ):
        with pytest.raises(UserError, match="not finite"):
            call()
