import json

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as V
from transformers import AutoImageProcessor

from encoders.preprocess import PUBLISHED_MARGIN, centre_view, margin_for, normalise, save_image_processor
from vision_core.errors import UserError

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def photograph(height, width, channels=3):
    return torch.randint(
        0,
        256,
        (channels, height, width),
        dtype=torch.uint8,
        generator=torch.Generator().manual_seed(height * width),
    )


# odd sides, sides smaller than the crop, and differences of which half is no whole number
@pytest.mark.parametrize(
    "shape", [(32, 32), (37, 53), (211, 98), (500, 375), (333, 501), (20, 31), (75, 1000)]
)
@pytest.mark.parametrize(
    ("size", "margin"), [(32, PUBLISHED_MARGIN), (56, PUBLISHED_MARGIN), (224, PUBLISHED_MARGIN), (30, 1.0)]
)
def test_the_saved_processor_gives_the_same_pixels(tmp_path, shape, size, margin):
    save_image_processor(tmp_path, (size, size), MEAN, STD, margin)
    processor = AutoImageProcessor.from_pretrained(tmp_path, trust_remote_code=False)
    image = photograph(*shape)
    ours = normalise(centre_view(image, (size, size), margin)[None], MEAN, STD)
    theirs = processor(image, return_tensors="pt")["pixel_values"]
    assert ours.shape == theirs.shape == (1, 3, size, size)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5)


def test_non_square_views_agree_where_the_image_is_as_elongated(tmp_path):
    save_image_processor(tmp_path, (32, 64), MEAN, STD, PUBLISHED_MARGIN)
    processor = AutoImageProcessor.from_pretrained(tmp_path, trust_remote_code=False)
    image = photograph(90, 200)
    ours = normalise(centre_view(image, (32, 64))[None], MEAN, STD)
    torch.testing.assert_close(ours, processor(image, return_tensors="pt")["pixel_values"], rtol=0, atol=2e-5)


@pytest.mark.parametrize("channels", [1, 2, 4, 6])
def test_multi_band_data_keeps_its_scale_in_the_processor_too(tmp_path, channels):
    mean, std = [1000.0 + band for band in range(channels)], [300.0] * channels
    save_image_processor(tmp_path, (32, 32), mean, std, PUBLISHED_MARGIN)
    processor = AutoImageProcessor.from_pretrained(tmp_path, trust_remote_code=False)
    image = photograph(60, 47, channels).float() * 10
    ours = normalise(centre_view(image, (32, 32))[None], mean, std)
    for given in (image, image.numpy()):
        theirs = processor(given, return_tensors="pt", input_data_format="channels_first")["pixel_values"]
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-4)


def test_the_processor_loads_where_only_transformers_is_imported(runs, tmp_path):
    save_image_processor(tmp_path, (224, 224), MEAN, STD, PUBLISHED_MARGIN)
    code = (
        "import sys\nfrom transformers import AutoImageProcessor\nfrom PIL import Image\n"
        "processor = AutoImageProcessor.from_pretrained(sys.argv[1], trust_remote_code=False)\n"
        "shape = tuple(processor(Image.new('RGB', (300, 400)), return_tensors='pt')['pixel_values'].shape)\n"
        "print(type(processor).__name__, shape, 'encoders' in sys.modules)"
    )
    printed = runs.finish(runs.start_plain(code, tmp_path))
    assert "BitImageProcessor (1, 3, 224, 224) False" in printed
    # what the released checkpoints' file says
    saved = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert saved["size"] == {"shortest_edge": 256} and saved["crop_size"] == {"height": 224, "width": 224}
    assert (
        saved["resample"] == 3
        and saved["image_mean"] == MEAN
        and saved["do_rescale"]
        and saved["do_center_crop"]
    )


def test_the_view_is_that_of_pillow():
    """An independent bicubic resize with antialiasing; both round to 8 bits, hence the tolerance of
    one and a half steps."""
    rows, columns = torch.meshgrid(torch.linspace(0, 9, 300), torch.linspace(0, 7, 400), indexing="ij")
    image = torch.stack([rows.sin(), columns.cos(), (rows * columns).sin()]).mul(100).add(128).byte()
    picture = (
        Image.fromarray(image.permute(1, 2, 0).numpy())
        .resize((341, 256), Image.Resampling.BICUBIC)
        .crop((58, 16, 282, 240))
    )
    view = centre_view(image, (224, 224)).permute(1, 2, 0).numpy()
    assert np.abs(view.astype(int) - np.asarray(picture).astype(int)).max() <= 1


def test_a_picture_of_the_right_size_is_left_alone():
    image = photograph(32, 32)
    assert margin_for(image, (32, 32)) == 1.0
    assert torch.equal(centre_view(image, (32, 32), 1.0), image)
    assert margin_for(photograph(20, 100), (32, 32)) == 1.0
    assert margin_for(photograph(33, 100), (32, 32)) == PUBLISHED_MARGIN
    assert margin_for(photograph(33, 100), (32, 32), 1.3) == 1.3


def test_only_bytes_are_scaled():
    image = torch.full((1, 2, 4, 4), 51, dtype=torch.uint8)
    assert torch.allclose(
        normalise(image, [0.1, 0.2], [0.1, 0.2])[0, :, 0, 0], torch.tensor([1.0, 0.0]), atol=1e-6
    )
    assert torch.allclose(normalise(image.float(), [1.0], [2.0]), torch.full((1, 2, 4, 4), 25.0))
    assert V.is_pure_tensor(normalise(image, [0.0], [1.0]))


def test_channels_and_statistics_must_fit():
    with pytest.raises(UserError, match="one number for each of 1 channels, not 3"):
        normalise(torch.zeros(2, 1, 4, 4), MEAN, STD)  # would broadcast to three channels
    with pytest.raises(UserError, match="one number for each of 4 channels, not 3"):
        normalise(torch.zeros(2, 4, 4, 4), [0.0] * 4, STD)
