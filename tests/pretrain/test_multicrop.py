"""Crops: sizes, ranges, determinism by the seed, and each operation against torchvision's."""

import pytest
import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as V

from pretrain.multicrop import BLUR_PROBABILITY, MultiCrop, gaussian_blur, random_box, random_colours


def picture(height=60, width=80):
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("size", [(32, 32), (24, 40)])
def test_shapes_and_the_same_seed_gives_the_same_crops(size):
    crops = MultiCrop(size, (16, 8), 3)
    torch.manual_seed(5)
    first = crops(picture())
    torch.rand(7)
    torch.manual_seed(5)
    second = crops(picture())
    assert [crop.shape for crop in first[0]] == [(3, *size)] * 2 and [crop.shape for crop in first[1]] == [(3, 16, 8)] * 3
    for left, right in zip(sum(first, []), sum(second, []), strict=True):
        assert torch.equal(left, right)
    assert not torch.equal(first[0][0], first[0][1])


def test_a_grey_image_is_normalised():
    """Only brightness moves a uniform grey; hue, saturation, contrast, crop and blur leave it."""
    crops = MultiCrop((16, 16), (8, 8), 2, blur="paper", mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    values = []
    for seed in range(30):
        torch.manual_seed(seed)
        values += [(crop.mean() * 0.25 + 0.5).item() for crop in crops(torch.full((3, 20, 20), 100, dtype=torch.uint8))[1]]
    assert 255 * min(values) > 100 * 0.58 and 255 * max(values) < 100 * 1.42
    assert sum(abs(255 * value - 100) < 1.01 for value in values) >= 5  # the fifth without jitter


@pytest.mark.parametrize("sigma", [0.1, 0.7, 2.0])
def test_blur_is_torchvisions(sigma):
    view = torch.rand(3, 24, 40)
    torch.testing.assert_close(gaussian_blur(view, sigma), V.gaussian_blur(view, [9, 9], [sigma, sigma]), rtol=0, atol=2e-6)


@pytest.mark.parametrize("side", [1, 2, 3, 4])
def test_blur_of_crops_smaller_than_its_kernel_keeps_a_flat_picture_flat(side):
    torch.testing.assert_close(gaussian_blur(torch.full((3, side, side), 0.7), 2.0), torch.full((3, side, side), 0.7))


def test_boxes_follow_the_published_distribution():
    torch.manual_seed(0)
    areas, aspects = [], []
    for _ in range(2000):
        top, left, height, width = random_box(300, 400, (0.05, 0.32))
        assert 0 <= top <= 300 - height and 0 <= left <= 400 - width
        areas.append(height * width / 120_000)
        aspects.append(width / height)
    assert min(areas) > 0.04 and max(areas) < 0.33 and min(aspects) > 0.74 and max(aspects) < 1.35
    assert sum(areas) / 2000 == pytest.approx(0.185, abs=0.01)
    theirs = [v2.RandomResizedCrop(8, scale=(0.05, 0.32)).make_params([torch.empty(3, 300, 400)]) for _ in range(2000)]
    assert sum(p["height"] * p["width"] for p in theirs) / 2000 / 120_000 == pytest.approx(sum(areas) / 2000, abs=0.01)


@pytest.mark.parametrize("shape", [(1, 1000), (1000, 3), (1, 1)])
def test_thin_images_work(shape):
    assert all(crop.shape == (3, 16, 16) for crop in MultiCrop((16, 16), (8, 8), 0)(picture(*shape))[0])


def test_probabilities_of_jitter_and_grayscale():
    torch.manual_seed(0)
    source = V.to_pil_image(picture(8, 8))
    changed = [V.pil_to_tensor(random_colours(source)) for _ in range(500)]
    grey = sum(bool((view[0] == view[1]).all()) for view in changed) / 500
    untouched = sum(bool((view == picture(8, 8)).all()) for view in changed) / 500
    assert grey == pytest.approx(0.2, abs=0.05) and untouched == pytest.approx(0.16, abs=0.05)


def test_blur_probabilities_have_names():
    assert BLUR_PROBABILITY["official"] == (0.0, 0.9, 0.5) and BLUR_PROBABILITY["paper"] == (1.0, 0.1, 0.5)


def test_multi_band_images_keep_their_channels_and_say_what_is_left_out():
    crops = MultiCrop((16, 16), (8, 8), 1, mean=[0.0] * 5, std=[1.0] * 5)
    views = crops(torch.rand(5, 30, 30))
    assert views[0][0].shape == (5, 16, 16) and views[1][0].dtype == torch.float32
    assert "left out, they need RGB: hue, saturation, grayscale, stains" in crops.describe()
