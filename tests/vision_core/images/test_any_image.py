"""The rules for arrays and text, and refusals with their cure; `tests/fusion/test_image_forms.py`
compares all forms of files."""

import base64
import io
import os
import time
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import tv_tensors

from vision_core.errors import UserError
from vision_core.images.any_image import image_tensor

COLOUR = np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)


def encoded(image: np.ndarray | Image.Image, format: str = "PNG", **options) -> bytes:
    stream = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(stream, format, **options)
    return stream.getvalue()


PNG = encoded(COLOUR)


@pytest.mark.parametrize("shape", [(3, 24, 3), (1, 24, 3), (3, 24, 1), (1, 24, 1)])
def test_where_both_ends_could_be_channels_numpy_has_them_last_and_torch_first(shape):
    values = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
    last, first = np.moveaxis(values, -1, 0), values
    for given, planes in ((values, last), (torch.from_numpy(values), first)):
        assert np.array_equal(image_tensor(given).numpy(), np.broadcast_to(planes, (3, *planes.shape[1:])))


def test_sixteen_bits_of_an_array_are_those_of_a_file():
    ramp = np.tile(np.arange(0, 65536, 32, dtype=np.uint16), (8, 1))
    from_file = image_tensor(encoded(ramp))
    exact = np.round(ramp[0] / 257)
    for given in (
        ramp,
        ramp.astype(">u2"),
        torch.from_numpy(ramp),
        torch.from_numpy(ramp)[None],
        ramp[..., None],
    ):
        assert torch.equal(image_tensor(given), from_file)
    assert np.array_equal(from_file[1, 3].numpy(), exact)
    assert np.array_equal(image_tensor(np.stack([ramp] * 3))[0, 0].numpy(), ramp[0] >> 8)


def test_an_array_is_copied_and_an_image_tensor_is_not():
    frozen = COLOUR.copy()
    frozen.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image = image_tensor(frozen)
    image[:] = 0
    assert np.array_equal(frozen, COLOUR)
    assert image_tensor(image) is image
    assert type(image_tensor(tv_tensors.Image(image))) is torch.Tensor
    assert torch.equal(image_tensor(COLOUR[::-1, ::-1]), image_tensor(COLOUR).flip(1, 2))


def test_an_image_in_memory_may_be_small_and_a_file_may_not():
    dot = np.zeros((1, 1, 3), dtype=np.uint8)
    for given in (dot, Image.fromarray(dot), torch.zeros(3, 1, 1, dtype=torch.uint8)):
        assert image_tensor(given).shape == (3, 1, 1)
    with pytest.raises(
        UserError, match=r"bytes cannot be decoded \(too_small\); give a larger one: 8 pixels"
    ):
        image_tensor(encoded(dot))


def test_a_frame_that_a_user_turned_to_is_the_one_taken():
    frames = [Image.new("RGB", (16, 8), colour) for colour in ("red", "lime", "blue")]
    animation = Image.open(
        io.BytesIO(encoded(frames[0], "WEBP", lossless=True, save_all=True, append_images=frames[1:]))
    )
    assert image_tensor(animation)[:, 0, 0].tolist() == [255, 0, 0]
    animation.seek(2)
    assert image_tensor(animation)[:, 0, 0].tolist() == [0, 0, 255]
    assert animation.tell() == 2


def test_changed_pixels_of_a_mapped_tiff_are_the_ones_taken(tmp_path):
    """Pillow maps uncompressed TIFFs into memory; what the user painted over is not in the file."""
    Image.fromarray(COLOUR[..., 0]).save(tmp_path / "x.tiff")
    image = Image.open(tmp_path / "x.tiff")
    assert np.array_equal(image_tensor(image)[0].numpy(), COLOUR[..., 0])
    image.paste(7, (0, 0, 40, 24))
    assert image_tensor(image).unique().tolist() == [7]


def test_text_is_a_path_before_it_is_base64(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = base64.b64encode(b"BM picture").decode().rstrip("=")
    assert "/" not in text
    (tmp_path / text).write_bytes(PNG)
    assert torch.equal(image_tensor(text), image_tensor(COLOUR))
    (tmp_path / "a b%.png").write_bytes(PNG)
    assert torch.equal(image_tensor((tmp_path / "a b%.png").as_uri()), image_tensor(COLOUR))
    folded = "data:image/png;base64," + base64.encodebytes(PNG).decode().replace("+", "%2B")
    assert torch.equal(image_tensor(folded), image_tensor(COLOUR))


def closed() -> Image.Image:
    with Image.open(io.BytesIO(PNG)) as image:
        pass
    return image


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            COLOUR / 255,
            r"values of type float64; give PIL images or uint8 arrays of 0 to 255: "
            r"for values of 0 to 1 take \(image \* 255\).round\(\)",
        ),
        (torch.zeros(3, 8, 8, dtype=torch.bfloat16), r"type bfloat16; .* take \(image \* 255\).round\(\)"),
        (COLOUR.astype(np.int64), "type int64; .* where all values are 0 to 255, convert them to uint8"),
        (COLOUR.astype(np.int8), "type int8; .* convert them to uint8"),
        (torch.zeros(3, 8, 8, dtype=torch.int64), "type int64; .* convert them to uint8"),
        (COLOUR > 9, r"type bool; .* take image \* 255"),
        (torch.zeros(8, 8, dtype=torch.bool), r"type bool; .* take image \* 255"),
        (np.array(["cat.png"]), "type str"),
        (np.zeros((8, 8, 4), np.uint8), r"shape \[8, 8, 4\]; give .* of an image with alpha the first three channels"),
        (np.zeros((2, 3, 8, 8), np.uint8), r"shape \[2, 3, 8, 8\]; .* several images as a list"),
        (torch.zeros(5, 8, 8, dtype=torch.uint8), r"shape \[5, 8, 8\]"),
        (np.zeros((0, 8, 3), np.uint8), r"shape \[0, 8, 3\]"),
        (torch.zeros(3, 0, 8, dtype=torch.uint8), r"shape \[3, 0, 8\]"),
        (np.uint8(3), "of type uint8; give a path, the bytes of a file, a PIL image"),
        ({"bytes": PNG}, "an image is of type dict; give a path, the bytes of a file, a PIL image"),
        (None, "an image is of type NoneType"),
        (
            Image.new("F", (9, 8)),
            r"PIL image of mode F, 9 x 8 cannot be taken \(unsupported_mode F\); "
            ".* save it as grey of 8 or 16 bits",
        ),
        (Image.new("I", (8, 8)), "unsupported_mode I"),
        (Image.new("LAB", (8, 8)), "unsupported_mode LAB"),
        (Image.new("La", (8, 8)), "unsupported_mode La"),
        (closed(), "call load.. before its file is closed"),
        (Image.open(io.BytesIO(PNG[: len(PNG) // 2])), r"cannot be taken \(truncated\); its file ends too early"),
        (PNG[: len(PNG) // 2], r"given as bytes cannot be decoded \(truncated\); its file ends too early"),
        (b"<html>", r"bytes cannot be decoded \(not_an_image\); give a JPEG, PNG"),
        ("nowhere/cat.png", r"nowhere/cat.png cannot be read \(missing\); give the path of a file that exists"),
        ("Y2F0", r"Y2F0 cannot be read \(missing\)"),
        ("x" * 9000, r"x{300} cannot be read \(cannot_be_opened\)"),
        ("file://cat.png", r"file://cat.png cannot be read \(missing\)"),
        ("data:image/png,%89PNG", "data URL that is not in base64; write data:image/png;base64,"),
        ("data:image/png;base64,?", "data URL that is not in base64"),
        ("data:image/png;base64,Y2F0", r"data URL cannot be decoded \(not_an_image\)"),
        (
            "https://example.org/cat.png",
            r"https://example.org/cat.png is not downloaded here; .* httpx.get\(url\).content",
        ),
    ],
)  # fmt: skip
def test_what_is_no_image_is_refused_with_the_cure(given, message):
    with pytest.raises(UserError, match=message) as caught:
        image_tensor(given)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    start = time.perf_counter()
    with pytest.raises(UserError, match=r"pipe cannot be read \(not_a_regular_file\)"):
        image_tensor(tmp_path / "pipe")
    assert time.perf_counter() - start < 1
