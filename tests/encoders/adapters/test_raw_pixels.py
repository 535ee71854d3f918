import pytest
import torch

from encoders.adapters.raw_pixels import RawPixels, resized_pixels
from encoders.preprocess import ImageTransform
from vision_core.errors import UserError


def test_every_number_of_the_map_is_a_pixel():
    images = torch.rand(2, 3, 24, 40, generator=torch.Generator().manual_seed(0))
    features = RawPixels()(images)
    assert features.patch_map.shape == (2, 192, 3, 5) and RawPixels().grid(24, 40) == (3, 5)
    for channel in range(3):
        for row in range(8):
            for column in range(8):
                expected = images[:, channel, row::8, column::8] - 0.5
                assert torch.equal(features.patch_map[:, channel * 64 + row * 8 + column], expected)
    assert features.cls is None and not features.normalised


def test_pooled_is_the_baseline():
    images = torch.rand(3, 3, 64, 48, generator=torch.Generator().manual_seed(0))
    encoder = RawPixels()
    assert torch.equal(encoder(images).pooled, resized_pixels(images)) and encoder(images).pooled.shape == (
        3,
        encoder.pooled_width,
    )


def test_the_transform_only_scales():
    image = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    encoder = RawPixels()
    torch.testing.assert_close(encoder.transform([image])[0], image / 255)
    assert encoder.transform.size == (64, 64) and RawPixels(
        ImageTransform((32, 40), (0.0,), (1.0,))
    ).transform.size == (32, 40)


def test_nothing_in_it_can_be_trained():
    encoder = RawPixels().freeze()
    assert not list(encoder.parameters()) and encoder.architecture() == {} and encoder.name == "raw_pixels"
    assert encoder.dtype == torch.float32 and encoder.device == torch.device("cpu")


def test_sizes_layers_and_channels():
    with pytest.raises(UserError, match="raw_pixels: a height of 60 is no multiple of the stride 8; use 64"):
        RawPixels()(torch.zeros(1, 3, 60, 64))
    with pytest.raises(UserError, match="raw_pixels: layers 2 do not exist"):
        RawPixels()(torch.zeros(1, 3, 64, 64), [2])
    with pytest.raises(UserError, match=r"must be \[batch, 3, height, width\]"):
        RawPixels()(torch.zeros(1, 4, 64, 64))


def test_raw_pixels_are_the_pixels():
    images = torch.rand(3, 3, 32, 32)
    assert torch.allclose(resized_pixels(images), images.reshape(3, -1) - 0.5)
    assert resized_pixels(torch.rand(2, 5, 100, 60)).shape == (2, 5 * 32 * 32)
    flat = resized_pixels(torch.full((1, 3, 77, 91), 0.75), side=8)
    assert flat.shape == (1, 192) and torch.allclose(flat, torch.full_like(flat, 0.25), atol=1e-5)
