import io
import struct
import time
import zlib

import numpy as np
import pytest
import torch

from vision_core.errors import UserError
from vision_core.images.decode import UnreadableImage, decode_image

tifffile = pytest.importorskip("tifffile")
VALUES = np.random.default_rng(0).integers(0, 256, (5, 24, 32))


def npy(array: np.ndarray, **options) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, **options)
    return stream.getvalue()


def tiff(array: np.ndarray, **options) -> bytes:
    stream = io.BytesIO()
    tifffile.imwrite(stream, array, **options)
    return stream.getvalue()


def reason(data: bytes, num_channels: int) -> str:
    with pytest.raises(UnreadableImage) as caught:
        decode_image(data, num_channels)
    return caught.value.reason


SCALES = [("uint8", 255), ("uint16", 65535), ("int16", 1), ("int32", 1), ("float32", 1), ("float64", 1)]


@pytest.mark.parametrize("dtype, scale", SCALES)
@pytest.mark.parametrize("order", ["first", "last", "fortran"])
def test_npy(dtype: str, scale: int, order: str) -> None:
    array = VALUES.astype(dtype)
    array = {"first": array, "last": array.transpose(1, 2, 0), "fortran": np.asfortranarray(array)}[order]
    image = decode_image(npy(array), 5)
    assert image.dtype == torch.float32 and image.shape == (5, 24, 32)
    np.testing.assert_allclose(image.numpy(), VALUES / scale, rtol=1e-6)


@pytest.mark.parametrize("dtype, scale", SCALES)
@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("layout", ["pages", "contiguous", "planar"])
def test_tiff(dtype: str, scale: int, compression: str | None, layout: str) -> None:
    array = VALUES.astype(dtype)
    options = {"photometric": "minisblack", "compression": compression, "metadata": None}
    if layout == "contiguous":
        data = tiff(array.transpose(1, 2, 0), planarconfig="contig", **options)
    elif layout == "planar":
        data = tiff(array, planarconfig="separate", **options)
    else:
        data = tiff(array, **options)
    image = decode_image(data, 5)
    assert image.shape == (5, 24, 32)
    np.testing.assert_allclose(image.numpy(), VALUES / scale, rtol=1e-6)


@pytest.mark.parametrize("dtype, scale", SCALES)
def test_one_band(dtype: str, scale: int) -> None:
    array = VALUES[0].astype(dtype)
    for data in (npy(array), npy(array[None]), npy(array[..., None]), tiff(array, photometric="minisblack")):
        image = decode_image(data, 1)
        assert image.shape == (1, 24, 32)
        np.testing.assert_allclose(image[0].numpy(), VALUES[0] / scale, rtol=1e-6)


def test_overviews_are_passed_over() -> None:
    stream = io.BytesIO()
    with tifffile.TiffWriter(stream) as writer:
        options = {"photometric": "minisblack", "planarconfig": "separate", "metadata": None}
        writer.write(VALUES.astype("uint8"), **options)
        writer.write(VALUES[:, ::2, ::2].astype("uint8"), subfiletype=1, **options)
    assert decode_image(stream.getvalue(), 5).shape == (5, 24, 32)


def npy_header(text: str) -> bytes:
    header = text.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header


@pytest.mark.parametrize(
    "data, expected",
    [
        (npy(np.array([[1, "a"]], dtype=object), allow_pickle=True), "python_objects"),
        (npy(VALUES.astype("float32"))[:-100], "truncated"),
        (npy(VALUES[:4]), "not_5_channels"),
        (npy(VALUES[0]), "not_5_channels"),
        (npy(VALUES[:, :5, :]), "too_small"),
        (npy(VALUES.astype("complex64")), "unsupported_type complex64"),
        (npy(np.array(["text"])), "unsupported_type <U4"),
        (npy(np.where(VALUES > 250, np.inf, VALUES)), "not_finite"),
        (npy(np.where(VALUES > 250, 1e300, VALUES)), "not_finite"),
        (npy_header("{'descr': '<f4', 'fortran_order': False, 'shape': (5, 100000, 100000), }"), "too_large"),
        (npy_header("{'descr': '<f4', 'fortran_order': False, 'shape': (5, 6000, 8000), }"), "too_large"),
        (npy_header("{'descr': '<f4', 'fortran_order': False, 'shape': (5, 600, 800), }"), "truncated"),
        (npy_header("{'descr': '<f4', 'fortran_order': False, 'shape': (5, -8, -8), }"), "too_small"),
        (npy_header("{'descr': __import__('os'), }"), "corrupt"),
        (b"\x93NUMPY\x01\x00", "corrupt"),
        (b"\x93NUMPY\x09\x00" + bytes(40), "corrupt"),
        (
            tiff(VALUES.transpose(1, 2, 0).astype("uint8"), planarconfig="contig", metadata=None)[:-3000],
            "corrupt",
        ),
        (b"II*\x00\xff\xff\xff\xff", "unsupported_tiff"),
    ],
)
def test_what_is_no_multiband_image_has_a_reason(data: bytes, expected: str) -> None:
    start = time.perf_counter()
    assert reason(data, 5) == expected
    assert time.perf_counter() - start < 0.2


def test_two_axes_of_that_length_are_ambiguous() -> None:
    assert reason(npy(np.zeros((12, 40, 12), dtype=np.uint8)), 12) == "ambiguous_channels"


def test_a_strip_that_inflates_beyond_the_image_is_corrupt() -> None:
    array = np.zeros((64, 64, 5), dtype=np.uint8)
    data = tiff(array, photometric="minisblack", planarconfig="contig", compression="zlib", metadata=None)
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page = file.pages[0]
        offsets, counts = page.tags["StripOffsets"], page.tags["StripByteCounts"]
    bomb = zlib.compress(bytes(50 * 2**20))
    forged = bytearray(data + bomb)
    struct.pack_into("<I", forged, offsets.offset + 8, len(data))
    struct.pack_into("<I", forged, counts.offset + 8, len(bomb))
    assert decode_image(data, 5).shape == (5, 64, 64)
    assert reason(bytes(forged), 5) == "corrupt"


def test_a_missing_tifffile_is_the_users_to_mend(monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tifffile", None)
    with pytest.raises(UserError, match="needs the package tifffile; pip install"):
        decode_image(tiff(VALUES.astype("uint8")), 5)
