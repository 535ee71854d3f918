import itertools
import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from encoders.evaluation.depth import depth_errors, dpt_depth, linear_depth
from encoders.evaluation.depth_protocol import NYU
from vision_core.errors import UserError


def test_errors_on_nyu_are_those_of_a_loop_over_its_crop():
    """Rows 45 to 470 and columns 41 to 600, depths strictly between 0.001 and 10 m, predictions
    clipped to these."""
    generator = torch.Generator().manual_seed(0)
    truth = 12 * torch.rand(480, 640, generator=generator)
    predicted = 14 * torch.rand(480, 640, generator=generator) - 1
    truth[100, 100:110] = 10.0
    truth[100, 110:120] = 0.001
    truths, predictions = truth.tolist(), predicted.tolist()
    lowest = float(np.float32(0.001))
    squares, relative, within, count = 0.0, 0.0, [0, 0, 0], 0
    for row, column in itertools.product(range(45, 471), range(41, 601)):
        t = truths[row][column]
        p = min(max(predictions[row][column], 0.001), 10.0)
        if lowest < t < 10:
            squares += (p - t) ** 2
            relative += abs(p - t) / t
            count += 1
            for place in range(3):
                within[place] += max(p / t, t / p) < 1.25 ** (place + 1)
    expected = [math.sqrt(squares / count), relative / count, *(number / count for number in within)]
    assert np.allclose(depth_errors(predicted, truth, 10.0, NYU).numpy(), expected, rtol=1e-6)
    assert not np.allclose(depth_errors(predicted, truth, 10.0).numpy(), expected, rtol=1e-2)


def test_what_lies_outside_the_crop_of_nyu_changes_no_figure():
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(2, 8, 4, 5, generator=generator)
    depths = 1 + 7 * torch.rand(2, 16, 20, generator=generator)
    truths = F.interpolate(depths[:, None], (480, 640))[:, 0]
    other = truths.clone()
    for outside_the_crop in (other[:, :45], other[:, 471:], other[:, :, :41], other[:, :, 601:]):
        outside_the_crop[:] = 9
    layers = [maps] * 4
    judges = (
        lambda test: linear_depth(maps, depths, maps, test, 10, iterations=2, protocol=NYU),
        lambda test: dpt_depth(layers, depths, layers, test, 10, channels=8, iterations=2, protocol=NYU),
    )
    for judge in judges:
        one, two = judge(truths), judge(other)
        assert (one.rmse, one.abs_rel, one.delta1) == (two.rmse, two.abs_rel, two.delta1)
    outside = torch.zeros_like(truths)
    outside[:, :45] = 5
    with pytest.raises(UserError, match="no test image has a depth"):
        linear_depth(maps, depths, maps, outside, 10, iterations=2, protocol=NYU)
    with pytest.raises(UserError, match="NYU is judged on depths of 480 x 640 pixels, not 16 x 20; give the"):
        linear_depth(maps, depths, maps, depths, 10, iterations=2, protocol=NYU)
