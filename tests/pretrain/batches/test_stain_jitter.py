"""Stains against scikit-image's conversion, and what jitter leaves as it is."""

import math

import numpy as np
import pytest
import torch
from skimage.color import hed2rgb, rgb2hed

from pretrain.batches.stain_jitter import change_stains, random_stains

UNIT = -math.log(1e-6)  # scikit-image's amounts are optical densities divided by it


def tissue():
    """`[3, 20, 30]` float32: colours that mixtures of the three stains have."""
    amounts = np.random.default_rng(0).uniform(0, 0.06, (20, 30, 3))
    return torch.from_numpy(hed2rgb(amounts)).permute(2, 0, 1).float()


@pytest.mark.parametrize(
    "alpha, beta",
    [
        ((1.2, 0.8, 1.0), (0.0, 0.0, 0.0)),
        ((1.0, 1.0, 1.0), (0.1, 0.05, 0.2)),
        ((0.9, 1.1, 1.2), (0.05, 0.1, 0.0)),
    ],
)
def test_changed_stains_are_scikit_images(alpha, beta):
    view = tissue()
    stains = rgb2hed(view.permute(1, 2, 0).double().numpy())
    expected = hed2rgb(np.array(alpha) * stains + np.array(beta) / UNIT)
    ours = change_stains(view, torch.tensor(alpha), torch.tensor(beta)).permute(1, 2, 0).numpy()
    np.testing.assert_allclose(ours, expected, rtol=0, atol=2e-5)


def test_no_change_leaves_every_colour_as_it_is():
    """Also those that no mixture of the stains has, such as green and white."""
    view = torch.rand(3, 20, 20).clamp(min=1e-5)
    torch.testing.assert_close(change_stains(view, torch.ones(3), torch.zeros(3)), view, rtol=0, atol=1e-5)


def test_jitter_is_a_function_of_the_seed_and_stays_in_range():
    torch.manual_seed(3)
    first = random_stains(tissue(), 0.2)
    torch.manual_seed(3)
    assert torch.equal(first, random_stains(tissue(), 0.2)) and not torch.equal(
        first, random_stains(tissue(), 0.2)
    )
    assert first.min() >= 0 and first.max() <= 1 and (first - tissue()).abs().mean() < 0.3
