import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from encoders.evaluation.depth import (
    LinearDepthHead,
    depth_errors,
    depth_picture,
    dpt_depth,
    expected_depth,
    is_known,
    linear_depth,
    sig_loss,
)
from vision_core.errors import UserError

GRID = (4, 5)


def problem(count=12, width=8, seed=0):
    """Maps that hold bumps of depth at their places, and smooth depths of four pixels a patch with
    unknown pixels."""
    generator = torch.Generator().manual_seed(seed)
    coarse = 1 + 7 * torch.rand(count, 1, 2, 2, generator=generator)
    depth = F.interpolate(coarse, GRID, mode="bilinear", align_corners=True)
    maps = torch.exp(-((depth - torch.linspace(1, 8, width)[None, :, None, None]) ** 2)) * 40
    depths = F.interpolate(depth, scale_factor=4, mode="bilinear", align_corners=False)[:, 0].clone()
    depths[torch.rand(depths.shape, generator=generator) < 0.2] = 0
    return maps, depths


def test_what_the_maps_determine_is_learnt():
    maps, depths = problem()
    result = linear_depth(maps.half(), list(depths), *problem(count=9, seed=1), max_depth=10, iterations=250)
    assert (
        result.delta1 > 95
        and result.delta3 >= result.delta2 >= result.delta1
        and result.rmse < 0.6
        and result.abs_rel < 0.1
    )
    assert len(result.predictions) == 8 and result.predictions[0].shape == depths[0].shape


def test_dpt_learns():
    maps, depths = problem(count=3)
    maps, depths = maps[..., :3, :3], depths[:, :12, :12]
    layers = [maps.roll(shift, 1) for shift in range(4)]
    result = dpt_depth(
        layers, depths, layers, depths, max_depth=10, channels=32, iterations=200, batch_size=3
    )
    assert result.delta1 > 95


def test_cls_beside_patches_is_used():
    maps, depths = problem(count=8)
    scale = torch.linspace(1, 2, 8)
    data = {"train_cls": torch.stack([scale, -scale], 1) * 3, "test_cls": torch.stack([scale, -scale], 1) * 3}
    inputs = (
        maps * 0.1,
        depths * scale[:, None, None] / 2,
        maps * 0.1,
        depths * scale[:, None, None] / 2,
        10,
    )
    with_cls, without = (linear_depth(*inputs, **data, iterations=150), linear_depth(*inputs, iterations=150))
    assert with_cls.rmse < 0.98 * without.rmse
    with pytest.raises(
        UserError, match="CLS tokens must be given for training and test images, or for neither"
    ):
        linear_depth(*inputs, train_cls=data["train_cls"])


def test_seeds():
    data = (*problem(count=4), *problem(count=2, seed=1), 10)
    first, again, other = (
        torch.stack(linear_depth(*data, iterations=3, batch_size=3, seed=seed).predictions)
        for seed in (0, 0, 1)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_the_order_of_convolution_and_upsampling_makes_no_difference():
    head = LinearDepthHead(7 + 3).double()
    maps, cls = torch.randn(2, 7, 3, 5, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)
    features = torch.cat([maps, cls[:, :, None, None].expand(-1, -1, 3, 5)], 1)
    published = head.convolution(
        F.interpolate(features, scale_factor=4, mode="bilinear", align_corners=False)
    )
    assert torch.allclose(head(maps, cls), published, atol=1e-12)


def test_expected_depth_is_that_of_a_loop():
    logits = torch.randn(2, 256, 3, 2)
    bins = [0.001 + number * (8 - 0.001) / 255 for number in range(256)]
    depth = expected_depth(logits, 8.0)
    for image, row, column in np.ndindex(2, 3, 2):
        weights = [max(value, 0.0) + 0.1 for value in logits[image, :, row, column].tolist()]
        expected = sum(weight * depth for weight, depth in zip(weights, bins, strict=True)) / sum(weights)
        assert math.isclose(depth[image, row, column].item(), expected, rel_tol=1e-5)
    one_bin = F.one_hot(torch.tensor([[[0, 255]]]), 256).permute(0, 3, 1, 2) * 1e9
    assert torch.allclose(expected_depth(one_bin.float(), 8.0), torch.tensor([[[0.001, 8.0]]]), atol=1e-5)


@pytest.mark.parametrize("warming_up", [False, True])
def test_loss_is_that_of_a_loop_and_unknown_pixels_change_nothing(warming_up):
    predicted = (5 * torch.rand(2, 4, 5, dtype=torch.float64) + 0.1).requires_grad_()
    truth = 5 * torch.rand(2, 4, 5, dtype=torch.float64) + 0.1
    truth[0, 0], truth[1, 2] = 0, 20
    g = []
    for place in np.ndindex(2, 4, 5):
        if 0.001 < truth[place] <= 10:
            g.append(math.log(predicted[place].item() + 0.001) - math.log(truth[place].item() + 0.001))
    mean, squares = sum(g) / len(g), sum(value**2 for value in g) / len(g)
    expected = math.sqrt(0.15 * mean**2) if warming_up else math.sqrt(squares - 0.85 * mean**2)
    loss = sig_loss(predicted, truth, 10.0, warming_up)
    assert math.isclose(loss.item(), expected, rel_tol=1e-9)
    loss.backward()
    assert (
        predicted.grad[0, 0].abs().max() == 0
        and predicted.grad[1, 2].abs().max() == 0
        and predicted.grad[0, 1].abs().min() > 0
    )


def test_loss_has_a_gradient_everywhere():
    for truth in (torch.full((1, 2, 2), 3.0), torch.zeros(1, 2, 2), torch.tensor([[[3.0, 0], [0, 0]]])):
        predicted = torch.full((1, 2, 2), 3.0, requires_grad=True)
        loss = sig_loss(predicted, truth, 10.0)
        loss.backward()
        assert loss.item() < 1e-5
        assert predicted.grad.isfinite().all()


def test_errors_are_those_of_a_loop_and_averaged_over_images():
    truth, predicted = 9 * torch.rand(6, 7) + 0.5, 9 * torch.rand(6, 7) + 0.5
    truth[0], truth[1] = 0, 11
    pairs = [
        (p, t)
        for p, t in zip(predicted.flatten().double().tolist(), truth.flatten().double().tolist(), strict=True)
        if 0.001 < t <= 10
    ]
    expected = [
        math.sqrt(sum((p - t) ** 2 for p, t in pairs) / len(pairs)),
        sum(abs(p - t) / t for p, t in pairs) / len(pairs),
    ]
    expected += [sum(max(p / t, t / p) < 1.25**power for p, t in pairs) / len(pairs) for power in (1, 2, 3)]
    assert np.allclose(depth_errors(predicted, truth, 10.0).numpy(), expected, rtol=1e-9)

    maps, depths = problem(count=3)
    depths[1, 3:], depths[2] = 0, 0  # few known pixels, and none
    result = linear_depth(maps, depths, maps, depths, 10, iterations=5)
    errors = [depth_errors(result.predictions[image], depths[image], 10) for image in range(2)]
    assert math.isclose(result.rmse, (errors[0][0] + errors[1][0]).item() / 2, rel_tol=1e-6)
    assert math.isclose(result.delta2, 50 * (errors[0][3] + errors[1][3]).item(), rel_tol=1e-6)
    pooled = depth_errors(torch.stack(result.predictions), depths, 10)[0].item()
    assert not math.isclose(result.rmse, pooled, rel_tol=1e-3)


def test_depths_are_judged_at_their_own_size():
    maps, depths = problem(count=2)
    sizes = [(40, 48), (33, 61)]
    truths = [F.interpolate(depths[:1, None] * 0 + 4, size)[0, 0] for size in sizes]
    assert [
        tuple(each.shape) for each in linear_depth(maps, depths, maps, truths, 10, iterations=2).predictions
    ] == sizes


def test_depth_picture():
    depth = torch.tensor([[0.0, 0.1, 5.0, 10.0, 12.0]])
    pixels = np.asarray(depth_picture(depth, 10.0))[0].astype(int)
    assert pixels[0].tolist() == pixels[4].tolist() == [0, 0, 0]
    assert pixels[1, 0] > 240 and pixels[3].tolist() == [38, 76, 191] and pixels[2].tolist() == [209, 64, 89]


def test_unknown_depths():
    assert is_known(torch.tensor([0.0, 0.001, 0.5, 10.0, 10.1]), 10.0).tolist() == [
        False,
        False,
        True,
        True,
        False,
    ]


def test_bad_input():
    maps, depths = problem(count=3)

    def run(train_maps=maps, train=depths, test_maps=maps, test=depths, max_depth=10.0):
        linear_depth(train_maps, train, test_maps, test, max_depth, iterations=2)

    with pytest.raises(UserError, match="3 training maps and 2 annotations"):
        run(train=depths[:2])
    with pytest.raises(UserError, match="2 test maps and 3 annotations"):
        run(test_maps=maps[:2])
    with pytest.raises(UserError, match="no training images"):
        run(train_maps=maps[:0], train=depths[:0])
    for bad in (-1.0, math.nan, math.inf):
        broken = depths.clone()
        broken[1, 2, 3] = bad
        with pytest.raises(UserError, match="depths of training image 1 are negative or not finite; write 0"):
            run(train=broken)
        with pytest.raises(UserError, match="depths of test image 1"):
            run(test=broken)
    with pytest.raises(UserError, match="no training image has a depth between 0.001 and 0.5 m"):
        run(max_depth=0.5)
    with pytest.raises(UserError, match="no test image has a depth"):
        run(test=depths * 0)
    broken = maps.clone()
    broken[2, 0, 0, 0] = math.nan
    for data in ({"train_maps": broken}, {"test_maps": broken}):
        with pytest.raises(UserError, match="features of image 2 are not finite"):
            run(**data)
    with pytest.raises(UserError, match="the dense head has diverged"):
        run(train_maps=maps * 5e36)
    for layers in ([maps] * 3, [maps, maps, maps, maps[..., 1:]]):
        with pytest.raises(UserError, match="four layers of one shape"):
            dpt_depth(layers, depths, layers, depths, 10)
