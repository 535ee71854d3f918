"""One image, the pixels of every encoder."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as V
from transformers import AutoImageProcessor

from encoders.preprocess import ImageTransform
from fusion.image_processing_fusion import FusionImageProcessor, fitted_view
from vision_core.errors import UserError

TRANSFORMS = [
    ImageTransform((32, 32), (0.1, 0.5, 0.9), (0.2, 0.3, 0.4), "crop", 1.2, "bicubic").to_dict(),
    ImageTransform((48, 48), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "squash", 1.0, "bilinear").to_dict(),
]


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("height", "width"), [(60, 80), (90, 30), (64, 64), (20, 200), (1, 1), (31, 20)])
def test_padding_after_the_long_side_is_resized_is_padding_before(height, width, mode):
    """Exactly so without the rounding of uint8 pictures between two passes."""
    image = torch.randint(0, 256, (3, height, width)).float()
    transform = ImageTransform((32, 32), (0.1, 0.5, 0.9), (1.0,) * 3, interpolation=mode)
    side = max(height, width)
    top, left = (side - height) // 2, (side - width) // 2
    padded = V.pad(image, [left, top, side - width - left, side - height - top], fill=[25, 127, 229])
    expected = V.resize(padded, [32, 32], interpolation=InterpolationMode(mode), antialias=True)
    view = fitted_view(image, transform, "pad")
    assert view.shape == (3, 32, 32)
    assert (view - expected).abs().max() < 1e-3
    rounded = fitted_view(image.byte(), transform, "pad").float()
    assert (rounded - expected.clamp(0, 255)).abs().mean() < 1
    assert fitted_view(image, transform, "squash").shape == (3, 32, 32)


def test_pixels_of_every_encoder_have_its_own_size_mean_and_std(pictures):
    processor = FusionImageProcessor(TRANSFORMS, grid=4)
    batch = processor(pictures)
    assert batch["pixel_values"].shape == (5, 3 * 32 * 32 + 3 * 48 * 48)
    views = processor.views(batch["pixel_values"])
    assert [tuple(each.shape) for each in views] == [(5, 3, 32, 32), (5, 3, 48, 48)]
    assert batch["image_sizes"].tolist() == [[60, 80], [90, 30], [64, 64], [20, 64], [1, 1]]
    raw = torch.from_numpy(np.array(pictures[2])).permute(2, 0, 1)
    expected = (
        V.resize(raw, [48, 48], interpolation=InterpolationMode.BILINEAR, antialias=True).float() / 255 * 2
        - 1
    )
    assert torch.allclose(views[1][2], expected, atol=1e-6)
    border = views[0][0][:, 0]  # the mean colour, but for rounding to whole levels
    assert border.abs().max() < 1 / 255 / 0.2


def test_all_kinds_of_images_are_taken(pictures):
    processor = FusionImageProcessor(TRANSFORMS)
    array = np.array(pictures[0])
    of_picture = processor(pictures[0])["pixel_values"][0]
    for same in (array, torch.from_numpy(array).permute(2, 0, 1), [array], [[pictures[0]]]):
        assert torch.equal(processor(same)["pixel_values"][0], of_picture)
    gray = Image.fromarray(array[..., 0])
    of_others = processor([gray, pictures[0].convert("RGBA")])["pixel_values"]
    assert processor.views(of_others)[0].shape == (2, 3, 32, 32)


def test_saved_and_loaded(tmp_path, pictures):
    processor = FusionImageProcessor(
        TRANSFORMS, fit="squash", mask_rule="published", grid=6, tokens_per_cell=2, newline=False
    )
    processor.save_pretrained(tmp_path)
    loaded = AutoImageProcessor.from_pretrained(tmp_path)
    assert isinstance(loaded, FusionImageProcessor)
    assert loaded.num_tokens(5, 50) == 72
    assert torch.equal(loaded(pictures)["pixel_values"], processor(pictures)["pixel_values"])


def test_numbers_of_tokens():
    assert FusionImageProcessor(TRANSFORMS, grid=24).num_tokens(480, 640) == 18 * 25
    assert FusionImageProcessor(TRANSFORMS, grid=24).num_tokens(1, 30) == 25
    assert (
        FusionImageProcessor(TRANSFORMS, grid=24, newline=False, tokens_per_cell=3).num_tokens(7, 7)
        == 24 * 24 * 3
    )
    assert FusionImageProcessor(TRANSFORMS, fixed_tokens=9).num_tokens(480, 640) == 9


@pytest.mark.parametrize(
    ("images", "options", "message"),
    [
        ([], {}, "no images were given"),
        ([np.zeros((5, 5, 3))], {}, "float64; give PIL images or uint8"),
        ([Image.new("RGB", (4, 4))], {"do_resize": False}, "do_resize: this processor takes no options"),
        ([Image.new("RGB", (4, 4))], {"return_tensors": "np"}, "use 'pt'"),
    ],
)
def test_bad_input(images, options, message):
    with pytest.raises(UserError, match=message):
        FusionImageProcessor(TRANSFORMS)(images, **options)


def test_pixels_of_other_encoders_are_refused():
    with pytest.raises(
        UserError,
        match=r"has 27 numbers for each image, and the encoders see 3 x 32 x 32, 3 x 48 x 48, which are 9984",
    ):
        FusionImageProcessor(TRANSFORMS).views(torch.zeros(2, 27))
