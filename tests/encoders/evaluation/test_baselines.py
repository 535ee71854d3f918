import numpy as np
import pytest
import torch

from encoders.evaluation.baselines import channel_range, colour_histogram, to_unit_range


def test_three_channels_give_the_joint_histogram():
    images = torch.rand(4, 3, 20, 30)
    for image, histogram in zip(images, colour_histogram(images), strict=True):
        expected, _ = np.histogramdd(image.reshape(3, -1).T.numpy(), bins=8, range=[(0, 1)] * 3)
        assert np.allclose(histogram.numpy(), expected.ravel() / 600, atol=1e-6)


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_other_channels_give_a_histogram_each(channels):
    images = torch.rand(2, channels, 16, 16)
    histograms = colour_histogram(images, bins=6)
    assert histograms.shape == (2, channels * 6)
    expected = [np.histogram(band.numpy(), bins=6, range=(0, 1))[0] / 256 for band in images[1]]
    assert np.allclose(histograms[1].numpy(), np.concatenate(expected), atol=1e-6)


def test_white_belongs_to_the_last_bin():
    histogram = colour_histogram(torch.ones(1, 3, 4, 4))[0]
    assert histogram[-1] == 1 and histogram.sum() == 1


def test_any_scale_becomes_zero_to_one():
    bytes_ = torch.tensor([0, 51, 255, 255], dtype=torch.uint8).view(1, 1, 2, 2)
    assert torch.allclose(
        to_unit_range(bytes_, *channel_range(bytes_)).flatten(), torch.tensor([0.0, 0.2, 1.0, 1.0])
    )
    bands = torch.stack([torch.linspace(-3, 5, 9), torch.linspace(1000, 1800, 9)]).view(1, 2, 3, 3)
    low, high = channel_range(bands)
    expected = torch.linspace(0, 1, 9).view(3, 3).expand(1, 2, 3, 3)
    assert torch.allclose(to_unit_range(bands, low, high), expected, atol=1e-6)
    assert to_unit_range(bands * 2, low, high).max() == 1 and to_unit_range(bands - 5, low, high).min() == 0
    assert torch.isfinite(
        to_unit_range(torch.full((1, 1, 2, 2), 7.0), *channel_range(torch.full((1, 1, 2, 2), 7.0)))
    ).all()
