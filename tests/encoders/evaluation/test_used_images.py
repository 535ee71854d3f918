import io

import numpy as np
import pytest
import torch
from PIL import Image

from encoders.evaluation.used_images import check_share, content_hash, found_in, in_words
from vision_core.errors import UserError
from vision_core.images.decode import decode_image
from vision_core.images.source import UnreadableSample


def samples(count):
    return [UnreadableSample(f"{number}.png", "truncated") for number in range(count)]


@pytest.mark.parametrize(
    ("bad", "images", "share", "stops"),
    [
        (0, 0, 0.01, False),
        (1, 16, 0.01, False),
        (2, 16, 0.01, True),
        (13, 16, 0.01, True),
        (13, 16, 1.0, False),
        (10, 1000, 0.01, False),
        (11, 1000, 0.01, True),
        (0, 9, 0.0, False),
        (1, 1000, 0.0, True),
        (8, 16, 0.5, False),
        (9, 16, 0.5, True),
    ],
)
def test_above_the_share_it_stops_and_one_image_is_forgiven(bad, images, share, stops):
    if not stops:
        return check_share(samples(bad), images, share, "test images")
    with pytest.raises(
        UserError,
        match=f"{bad} of {images:,} test images could not be read, more than max_bad_fraction={share:g}: 0.png",
    ) as said:
        check_share(samples(bad), images, share, "test images")
    assert "\n" not in str(said.value) and "raise --max_bad_fraction" in str(said.value)


@pytest.mark.parametrize(
    "reason",
    [
        "outside_the_data_folder",
        "mask outside_the_data_folder, depth truncated",
        "depth outside_the_data_folder",
    ],
)
def test_the_cure_of_the_first_reason_is_said(reason):
    bad = [UnreadableSample(f"{number}.png", reason) for number in range(3)]
    with pytest.raises(
        UserError, match="add .follow_links=true to the source.*; or remove them, or raise --max_bad_fraction"
    ):
        check_share(bad, 9, 0.01, "test images")


def test_the_first_names_are_said():
    assert in_words(samples(2)) == "0.png (truncated), 1.png (truncated)"
    assert in_words(samples(13)).endswith("4.png (truncated) and 8 more")


def encoded(pixels, kind, **options):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind, **options)
    return decode_image(stream.getvalue())


def test_the_same_pixels_in_another_file_are_the_same_picture():
    pixels = np.random.default_rng(0).integers(0, 255, (20, 24, 3), dtype=np.uint8)
    png = content_hash(encoded(pixels, "PNG"))
    assert png.shape == (2,) and png.dtype == torch.int64
    for kind, options in (
        ("PNG", {"compress_level": 0}),
        ("WEBP", {"lossless": True}),
        ("BMP", {}),
        ("TIFF", {}),
    ):
        assert torch.equal(content_hash(encoded(pixels, kind, **options)), png), kind
    assert not torch.equal(content_hash(encoded(pixels, "JPEG")), png)
    pixels[3, 4, 1] ^= 1
    assert not torch.equal(content_hash(encoded(pixels, "PNG")), png)


def test_shape_and_type_are_part_of_the_content():
    image = torch.zeros(1, 4, 6, dtype=torch.uint8)
    others = [image.reshape(1, 6, 4), image.reshape(3, 4, 2), torch.zeros(1, 1, 6)]
    assert all(not torch.equal(content_hash(image), content_hash(other)) for other in others)
    assert torch.equal(content_hash(image.expand(3, 4, 6)), content_hash(image.repeat(3, 1, 1))), (
        "strides are not"
    )


def test_what_is_found():
    ones = torch.stack([content_hash(torch.full((1, 2, 2), value)) for value in (1.0, 2.0, 3.0)])
    assert found_in(ones, ones[[2, 0]]).tolist() == [True, False, True]
    assert found_in(ones, ones[:0]).tolist() == [False] * 3
