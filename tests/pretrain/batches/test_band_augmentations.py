"""Brightness, contrast, solarize and dropped channels of any bands: the rule in its own formula, in
any units, and how often."""

import pytest
import torch

from pretrain.batches.band_augmentations import random_band_jitter, random_dropped_channels, solarize_bands
from pretrain.batches.multicrop import MultiCrop, Poses

MEAN, STD = torch.tensor([100.0, 3.0, -7.0, 0.5]), torch.tensor([20.0, 0.5, 4.0, 0.1])


def bands(height=40, width=50):
    z = torch.randn(4, height, width, generator=torch.Generator().manual_seed(0))
    return MEAN.view(-1, 1, 1) + STD.view(-1, 1, 1) * z


def crops_of(image, mean, std):
    crops = MultiCrop(
        (24, 24), (16, 16), 2, blur="paper", mean=mean.tolist(), std=std.tolist(), poses=Poses(0.5, 0.5, True),
        solarize_probability=1.0, band_jitter_strength=1.0, channel_drop_probability=0.5,
    )  # fmt: skip
    return sum(crops(image), [])


@pytest.mark.parametrize("factor, offset", [(1000.0, 0.0), (0.01, 5.0), (1.0, 273.15)])
def test_crops_do_not_depend_on_the_units(factor, offset):
    """Reflectance or reflectance times 1000, kelvin or degrees: with the data's own mean and std
    the crops are the same."""
    for seed in range(10):
        torch.manual_seed(seed)
        ours = crops_of(bands(), MEAN, STD)
        torch.manual_seed(seed)
        theirs = crops_of(factor * bands() + offset, factor * MEAN + offset, factor * STD)
        for left, right in zip(ours, theirs, strict=True):
            torch.testing.assert_close(left, right, rtol=0, atol=0.02)


def test_jitter_is_its_formula():
    """x -> m + f (x - m) + b std, f and b the same for all bands, f within 1 +- 0.4 s, b within +-
    0.8 s; four times of five."""
    torch.manual_seed(0)
    image, untouched, found = bands(), 0, []
    std = STD.view(-1, 1, 1)
    for _ in range(300):
        view = random_band_jitter(image, std, 0.5)
        if torch.equal(view, image):
            untouched += 1
            continue
        factor = view.double().std((1, 2)) / image.double().std((1, 2))
        shift = (view.double().mean((1, 2)) - image.double().mean((1, 2))) / STD
        torch.testing.assert_close(factor, factor[:1].expand(4), rtol=1e-4, atol=0)
        torch.testing.assert_close(shift, shift[:1].expand(4), rtol=0, atol=1e-3)
        found.append((factor[0].item(), shift[0].item()))
    factors, shifts = zip(*found, strict=True)
    assert untouched / 300 == pytest.approx(0.2, abs=0.07)
    assert 0.8 <= min(factors) < 0.82 and 1.18 < max(factors) <= 1.2001
    assert -0.4001 <= min(shifts) < -0.38 and 0.38 < max(shifts) <= 0.4001


def test_solarize_reflects_at_the_mean():
    mean = MEAN.view(-1, 1, 1)
    expected = mean - (bands() - mean).abs()
    torch.testing.assert_close(solarize_bands(bands(), mean), expected)


def test_dropped_channels_leave_one_and_have_their_probability():
    torch.manual_seed(0)
    drawn = [random_dropped_channels(4, 0.3) for _ in range(2000)]
    assert sum(bool(channels) for channels in drawn) / 2000 == pytest.approx(0.3, abs=0.04)
    sizes = [len(channels) for channels in drawn if channels]
    assert {sizes.count(size) / len(sizes) > 0.25 for size in (1, 2, 3)} == {True} and max(sizes) == 3
    assert {channel for channels in drawn for channel in channels} == {0, 1, 2, 3}
    assert random_dropped_channels(1, 1.0) == []


def test_all_crops_of_an_image_lose_the_same_channels():
    """A lost channel is its mean: 0 after normalisation."""
    crops = MultiCrop(
        (16, 16), (8, 8), 2, blur="none", mean=MEAN.tolist(), std=STD.tolist(), channel_drop_probability=1.0
    )
    for seed in range(10):
        torch.manual_seed(seed)
        lost = [tuple((view == 0).all(-1).all(-1).tolist()) for view in sum(crops(bands()), [])]
        assert len(set(lost)) == 1 and 1 <= sum(lost[0]) <= 3


def test_what_is_on_is_said():
    crops = MultiCrop(
        (16, 16),
        (8, 8),
        1,
        mean=[0.0] * 4,
        std=[1.0] * 4,
        poses=Poses(0.5, 0.5, True),
        band_jitter_strength=0.5,
    )
    said = crops.describe()
    for part in (
        "band jitter 0.5",
        "vertical flip 0.5",
        "quarter turns",
        "left out, they need RGB: hue, saturation, grayscale, stains",
    ):
        assert part in said
