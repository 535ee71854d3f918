"""Crops: sizes, ranges, determinism by the seed, and each operation against torchvision's."""

import pytest
import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as V

from pretrain.batches.multicrop import (
    BLUR_PROBABILITY,
    MultiCrop,
    Poses,
    gaussian_blur,
    random_box,
    random_colours,
    random_view,
)


def picture(height=60, width=80):
    return torch.randint(
        0, 256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )


@pytest.mark.parametrize("size", [(32, 32), (24, 40)])
def test_shapes_and_the_same_seed_gives_the_same_crops(size):
    crops = MultiCrop(size, (16, 8), 3)
    torch.manual_seed(5)
    first = crops(picture())
    torch.rand(7)
    torch.manual_seed(5)
    second = crops(picture())
    assert [crop.shape for crop in first[0]] == [(3, *size)] * 2 and [crop.shape for crop in first[1]] == [
        (3, 16, 8)
    ] * 3
    for left, right in zip(sum(first, []), sum(second, []), strict=True):
        assert torch.equal(left, right)
    assert not torch.equal(first[0][0], first[0][1])


def test_a_grey_image_is_normalised():
    """Only brightness moves a uniform grey; hue, saturation, contrast, crop and blur leave it."""
    crops = MultiCrop((16, 16), (8, 8), 2, blur="paper", mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    values = []
    for seed in range(30):
        torch.manual_seed(seed)
        values += [
            (crop.mean() * 0.25 + 0.5).item()
            for crop in crops(torch.full((3, 20, 20), 100, dtype=torch.uint8))[1]
        ]
    assert 255 * min(values) > 100 * 0.58 and 255 * max(values) < 100 * 1.42
    assert sum(abs(255 * value - 100) < 1.01 for value in values) >= 5  # the fifth without jitter


@pytest.mark.parametrize("sigma", [0.1, 0.7, 2.0])
def test_blur_is_torchvisions(sigma):
    view = torch.rand(3, 24, 40)
    torch.testing.assert_close(
        gaussian_blur(view, sigma), V.gaussian_blur(view, [9, 9], [sigma, sigma]), rtol=0, atol=2e-6
    )


@pytest.mark.parametrize("side", [1, 2, 3, 4])
def test_blur_of_crops_smaller_than_its_kernel_keeps_a_flat_picture_flat(side):
    torch.testing.assert_close(
        gaussian_blur(torch.full((3, side, side), 0.7), 2.0), torch.full((3, side, side), 0.7)
    )


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
    theirs = [
        v2.RandomResizedCrop(8, scale=(0.05, 0.32)).make_params([torch.empty(3, 300, 400)])
        for _ in range(2000)
    ]
    assert sum(p["height"] * p["width"] for p in theirs) / 2000 / 120_000 == pytest.approx(
        sum(areas) / 2000, abs=0.01
    )


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


def published_crop(picture, size, scale, blur_probability, solarize_probability, mean, std):
    """A crop with the default options, in the order of draws that seeds of earlier versions rely
    on."""
    is_rgb = len(mean) == 3
    height, width = V.get_size(picture)
    box = random_box(height, width, scale)
    view = V.resized_crop(
        picture, *box, list(size), interpolation=v2.InterpolationMode.BICUBIC, antialias=True
    )
    view = V.horizontal_flip(view) if torch.rand(()) < 0.5 else view
    if is_rgb:
        if torch.rand(()) < 0.8:
            draws = [
                low + torch.rand(()).item() * (high - low)
                for low, high in ((0.6, 1.4), (0.6, 1.4), (0.8, 1.2), (-0.1, 0.1))
            ]
            changes = (V.adjust_brightness, V.adjust_contrast, V.adjust_saturation, V.adjust_hue)
            for number in torch.randperm(4).tolist():
                view = changes[number](view, draws[number])
        view = V.rgb_to_grayscale(view, 3) if torch.rand(()) < 0.2 else view
        view = V.to_dtype(V.pil_to_tensor(view), torch.float32, scale=True)
    if torch.rand(()) < blur_probability:
        view = gaussian_blur(view, 0.1 + torch.rand(()).item() * 1.9)
    if is_rgb and torch.rand(()) < solarize_probability:
        view = torch.where(view >= 128 / 255, 1 - view, view)
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (mean, std))
    return (view - mean) / std


@pytest.mark.parametrize("channels", [3, 5])
def test_seeds_give_the_crops_that_they_always_gave(channels):
    """With the default options, bit for bit, and no draw more or fewer."""
    mean, std = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]) if channels == 3 else ([0.2] * 5, [0.5] * 5)
    crops = MultiCrop((32, 32), (16, 16), 2, mean=mean, std=std)
    image = picture(50, 70) if channels == 3 else torch.rand(5, 50, 70)
    source = V.to_pil_image(image) if channels == 3 else image
    kinds = [
        ((32, 32), (0.32, 1.0), 0.0, 0.0),
        ((32, 32), (0.32, 1.0), 0.9, 0.2),
        *[((16, 16), (0.05, 0.32), 0.5, 0.0)] * 2,
    ]
    for seed in range(20):
        torch.manual_seed(seed)
        ours = [*sum(crops(image), []), torch.rand(1)]
        torch.manual_seed(seed)
        theirs = [*(published_crop(source, *kind, mean, std) for kind in kinds), torch.rand(1)]
        assert all(torch.equal(left, right) for left, right in zip(ours, theirs, strict=True))


def ramps(height, width):
    """Channels that grow by 1 a row, by 1 a column, and by nothing."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([rows, columns, torch.zeros_like(rows)]).float()


def slopes(view):
    """Of the first two channels of a crop of `ramps`, per pixel downwards and to the right:
    `[[row/y, row/x], [column/y, column/x]]`."""
    inner = view[:2, 4:-4, 4:-4]
    return torch.stack([inner.diff(dim=1).mean((1, 2)), inner.diff(dim=2).mean((1, 2))], dim=1)


UNFLIPPED = Poses(0.0)


def plain_crops(size, poses=UNFLIPPED):
    """Crops of numbers that nothing changes but box, flips and turns."""
    return MultiCrop(
        size,
        (16, 16),
        0,
        (0.1, 0.3),
        blur="none",
        mean=[0.0] * 3,
        std=[1.0] * 3,
        poses=poses,
        known_range=False,
    )


@pytest.mark.parametrize("size", [(32, 32), (32, 64), (96, 32)])
def test_objects_keep_their_shape_in_crops_that_are_not_square(size):
    """A pixel of a crop shows at most 4/3 times as much in one direction as in the other, as
    evaluation shows the same in both."""
    ratios = []
    for seed in range(60):
        torch.manual_seed(seed)
        for crop in plain_crops(size)(ramps(200, 300))[0]:
            (down, _), (_, right) = slopes(crop)
            ratios.append((right / down).item())
    assert 0.7 < min(ratios) < 0.85 and 1.18 < max(ratios) < 1.43


def test_quarter_turns_and_flips_turn_what_is_seen_and_keep_the_size():
    """Every one of the eight poses of a rectangle is met, and in each the shape is kept."""
    met = set()
    for seed in range(80):
        torch.manual_seed(seed)
        for crop in plain_crops((32, 64), Poses(0.5, 0.5, True))(ramps(200, 300))[0]:
            assert crop.shape == (3, 32, 64)
            found = slopes(crop)
            met.add(tuple(found.div(found.abs().max()).round().flatten().int().tolist()))
            greatest = found.abs().amax(1)
            assert 0.7 < (greatest[0] / greatest[1]).item() < 1.43
    assert len(met) == 8


def test_a_picture_and_its_turn_on_the_screen_agree():
    """PIL images and tensors are turned the same way."""
    for seed in range(12):
        torch.manual_seed(seed)
        as_tensor = random_view(picture(40, 40), (16, 24), (0.5, 1.0), Poses(0.5, 0.5, True))
        torch.manual_seed(seed)
        as_picture = V.pil_to_tensor(
            random_view(V.to_pil_image(picture(40, 40)), (16, 24), (0.5, 1.0), Poses(0.5, 0.5, True))
        )
        assert (as_tensor.int() - as_picture.int()).abs().max() <= 2


def test_flips_have_their_probabilities():
    torch.manual_seed(0)
    flipped = (
        sum(
            slopes(plain_crops((32, 32), Poses(0.0, 0.25))(ramps(100, 100))[0][0])[0, 0].item() < 0
            for _ in range(200)
        )
        / 200
    )
    mirrored = sum(slopes(plain_crops((32, 32))(ramps(100, 100))[0][0])[1, 1].item() < 0 for _ in range(50))
    assert flipped == pytest.approx(0.25, abs=0.09) and mirrored == 0


def test_float_pictures_keep_their_levels():
    """12 bits of a microscope, with `?scale=4095`: 8-bit colours would leave 256 of them."""
    levels = torch.arange(128 * 128).remainder(4096).reshape(128, 128).float() / 4095
    crops = MultiCrop((128, 128), (64, 64), 0, (1.0, 1.0), blur="none", mean=[0.0] * 3, std=[1.0] * 3)
    torch.manual_seed(0)
    for crop in crops(levels.expand(3, -1, -1))[0]:
        assert len(crop[0].mul(4095 * 4).round().unique()) >= 4000 and crop.min() >= 0 and crop.max() <= 1


def test_float_pictures_get_the_augmentations_of_8_bit_ones():
    crops = MultiCrop((32, 32), (16, 16), 2, blur="paper", mean=[0.0] * 3, std=[1.0] * 3, stain_strength=0.1)
    smooth = V.resize(picture(8, 8), [60, 80], antialias=True)
    for seed in range(20):
        torch.manual_seed(seed)
        eight_bit = sum(crops(smooth), [])
        torch.manual_seed(seed)
        for left, right in zip(eight_bit, sum(crops(smooth.float() / 255), []), strict=True):
            # where a value is nearly the threshold of solarize, rounding decides
            assert (left - right).abs().median() < 0.01 and (
                (left - right).abs() > 0.04
            ).float().mean() < 0.05


def test_without_colour_strength_no_colour_changes():
    torch.manual_seed(0)
    source = V.to_pil_image(picture(8, 8))
    assert all(
        torch.equal(V.pil_to_tensor(random_colours(source, 0.0, 0.0)), picture(8, 8)) for _ in range(20)
    )


def test_bands_of_unknown_units_are_not_taken_for_colours():
    """Three bands in kelvin: nothing is clipped to 0..1."""
    crops = MultiCrop(
        (16, 16),
        (8, 8),
        1,
        (1.0, 1.0),
        (1.0, 1.0),
        "none",
        mean=[290.0] * 3,
        std=[10.0] * 3,
        known_range=False,
    )
    image = torch.stack([torch.linspace(280, 300, 1600).reshape(40, 40)] * 3)
    for seed in range(10):
        torch.manual_seed(seed)
        for crop in sum(crops(image), []):
            assert -1.1 < crop.min() < -0.8 and 0.8 < crop.max() < 1.1
