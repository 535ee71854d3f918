import io
import os
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vision_core.images.decode import UnreadableImage, decode_image, decode_values, picture_size
from vision_core.images.formats import tiff
from vision_core.images.open_source import open_source

ROOT = Path(__file__).resolve().parents[3]
COLOUR = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
SMOOTH = np.array(Image.fromarray(COLOUR).resize((96, 64), Image.Resampling.BICUBIC, (0, 0, 8, 6)))


def encode(picture: Image.Image | np.ndarray, format: str, **options) -> bytes:
    stream = io.BytesIO()
    (Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture).save(stream, format, **options)
    return stream.getvalue()


def png(width: int, height: int, depth: int, colour_type: int, rows: bytes) -> bytes:
    """A PNG written by hand, so that the header may say anything."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows, 9))
        + chunk(b"IEND", b"")
    )


def bomb_png(side: int) -> bytes:
    """side x side pixels of one bit, as small as they compress."""
    return png(side, side, 1, 0, bytes((side + 7) // 8 + 1) * side)


def bomb_gif(side: int) -> bytes:
    """A GIF whose header asks for side x side and whose disposal method makes Pillow fill the
    canvas on opening."""
    screen = b"GIF89a" + struct.pack("<HHBBB", side, side, 0x80, 0, 0) + b"\0\0\0\1\1\1"
    frame = b"\x21\xf9\x04\x08\0\0\0\0\x2c" + struct.pack("<HHHHB", 0, 0, side, side, 0)
    return screen + frame + b"\x02\x02\x44\x01\x00\x3b"


def with_size(data: bytes, offset: int, form: str, *size: int) -> bytes:
    return data[:offset] + struct.pack(form, *size) + data[offset + struct.calcsize(form) :]


def reason(data: bytes, num_channels: int = 3) -> str:
    with pytest.raises(UnreadableImage) as caught:
        decode_image(data, num_channels)
    assert caught.value.reason == str(caught.value)
    assert len(caught.value.reason) < 40 and "0x" not in caught.value.reason
    return caught.value.reason


PICTURE = Image.fromarray(SMOOTH)
HALVES = {format: encode(SMOOTH, format) for format in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")}
READABLE = {
    "jpeg": HALVES["JPEG"],
    "cmyk": encode(PICTURE.convert("CMYK"), "JPEG"),
    "palette": encode(PICTURE.convert("P"), "PNG"),
    "palette_alpha": encode(PICTURE.convert("P"), "PNG", transparency=3),
    "palette_alpha_tiff": encode(PICTURE.convert("P").convert("PA"), "TIFF"),
    "grey_alpha": encode(PICTURE.convert("LA"), "PNG"),
    "rgba": encode(np.dstack([SMOOTH, SMOOTH[..., 0]]), "PNG"),
    "one_bit": encode(PICTURE.convert("1"), "PNG"),
    "grey": encode(PICTURE.convert("L"), "PNG"),
    "ycbcr": encode(PICTURE.convert("YCbCr"), "TIFF"),
    "webp": HALVES["WEBP"],
    "bmp": HALVES["BMP"],
}


@pytest.mark.parametrize("name", READABLE)
def test_pictures_equal_pillows_rgb(name: str) -> None:
    image = decode_image(READABLE[name])
    reference = np.array(Image.open(io.BytesIO(READABLE[name])).convert("RGB"))
    assert image.dtype == torch.uint8 and image.shape == (3, 64, 96) and image.is_contiguous()
    assert np.array_equal(image.permute(1, 2, 0).numpy(), reference)


@pytest.mark.parametrize("name", [name for name in READABLE if name not in ("one_bit",)])
def test_pictures_keep_their_means(name: str) -> None:
    expected = SMOOTH.mean() if "grey" not in name else np.array(PICTURE.convert("L")).mean()
    assert abs(decode_image(READABLE[name]).float().mean() - expected) < 4


@pytest.mark.parametrize(
    "data, expected",
    [
        (b"", "not_an_image"),
        (b"<!DOCTYPE html><html><body>404</body></html>" * 20, "not_an_image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 96 64\n", "not_an_image"),
        (b"\xd7\xcd\xc6\x9a\x00\x00" + bytes(80), "not_an_image"),
        (b"\x89HDF\r\n\x1a\n" + bytes(80), "not_an_image"),
        (HALVES["JPEG"][: len(HALVES["JPEG"]) // 2], "truncated"),
        (HALVES["PNG"][: len(HALVES["PNG"]) // 2], "truncated"),
        (HALVES["WEBP"][: len(HALVES["WEBP"]) // 2], "truncated"),
        (HALVES["GIF"][: len(HALVES["GIF"]) // 2], "truncated"),
        (HALVES["BMP"][: len(HALVES["BMP"]) // 2], "truncated"),
        (HALVES["TIFF"][: len(HALVES["TIFF"]) // 2], "truncated"),
        (HALVES["PNG"][:20], "truncated"),
        (b"\xff\xd8\xff\xe0" + bytes(40), "corrupt"),
        (b"II*\0\xff\xff\xff\xff", "unsupported_tiff"),
        (encode(Image.fromarray(SMOOTH[..., 0].astype(np.float32)), "TIFF"), "unsupported_mode float32"),
        (encode(Image.fromarray(SMOOTH[..., 0].astype(np.int32)), "TIFF"), "unsupported_mode int32"),
        (encode(np.zeros((1, 1, 3), dtype=np.uint8), "PNG"), "too_small"),
        (encode(np.zeros((1, 10000, 3), dtype=np.uint8), "PNG"), "too_small"),
        (b"\x93NUMPY\x01\x00", "corrupt"),
        (b"PK\x03\x04" + bytes(40), "corrupt"),
    ],
)
def test_what_is_no_picture_has_a_reason(data: bytes, expected: str) -> None:
    assert reason(data) == expected


def test_a_flipped_bit_in_png_data_is_corrupt() -> None:
    data = bytearray(HALVES["PNG"])
    data[data.index(b"IDAT") + 200] ^= 4
    assert reason(bytes(data)) == "corrupt"


def test_sixteen_bit_grey_is_divided_by_257() -> None:
    ramp = np.tile(np.linspace(0, 65535, 256).round().astype(np.uint16), (64, 1))
    for data in (encode(ramp, "PNG"), encode(ramp, "TIFF")):
        image = decode_image(data)
        assert abs(image.float().mean() - 127.5) < 1
        assert torch.equal(image[:, 0], torch.arange(256, dtype=torch.uint8).expand(3, -1))


def test_sixteen_bit_colour_is_the_high_byte() -> None:
    values = np.random.default_rng(1).integers(0, 65536, (16, 24, 3)).astype(">u2")
    image = decode_image(png(24, 16, 16, 2, b"".join(b"\0" + row.tobytes() for row in values)))
    assert np.array_equal(image.permute(1, 2, 0).numpy(), values >> 8)


# EXIF 2.3, tag 0x0112: the side of the picture that the stored row 0 and column 0 are
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: a.transpose(1, 0, 2)[:, ::-1],
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: a.transpose(1, 0, 2)[::-1],
}


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP"])
def test_exif_orientation(orientation: int, format: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(SMOOTH, format, exif=exif, **({"lossless": True} if format == "WEBP" else {}))
    assert np.array_equal(decode_image(data).permute(1, 2, 0).numpy(), UPRIGHT[orientation](SMOOTH))


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_the_size_in_the_header_is_that_of_the_upright_picture(orientation: int, format: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(SMOOTH, format, exif=exif)
    assert picture_size(data) == tuple(decode_image(data).shape[1:])


def test_orientation_six_of_sixteen_bit_grey_and_of_jpeg() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode_image(encode(SMOOTH, "JPEG", exif=exif)).shape == (3, 96, 64)
    assert decode_image(encode(SMOOTH[..., 0].astype(np.uint16) * 257, "PNG", exif=exif)).shape == (3, 96, 64)


def test_an_unreadable_exif_block_leaves_the_pixels() -> None:
    data = encode(SMOOTH, "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff garbage")
    assert torch.equal(decode_image(data), decode_image(HALVES["JPEG"]))


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP"])
def test_an_animation_gives_its_first_frame(format: str) -> None:
    frames = [Image.new("RGB", (32, 24), colour) for colour in ("red", "green", "blue")]
    data = encode(
        frames[0],
        format,
        save_all=True,
        append_images=frames[1:],
        **({"lossless": True} if format == "WEBP" else {}),
    )
    assert torch.equal(
        decode_image(data), torch.tensor([255, 0, 0], dtype=torch.uint8).view(3, 1, 1).expand(3, 24, 32)
    )


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


WEBP_LOSSLESS = encode(np.zeros((16, 16, 3), dtype=np.uint8), "WEBP", lossless=True)
BOMBS = {
    "png_9500": bomb_png(9500),
    "png_13000": bomb_png(13000),
    "png_20000": bomb_png(20000),
    "gif_8500": bomb_gif(8500),
    "gif_12000": bomb_gif(12000),
    "bmp": with_size(HALVES["BMP"], 18, "<ii", 20000, 20000),
    "webp": with_size(WEBP_LOSSLESS, 21, "<I", 11999 | 11999 << 14),
}


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads the resident memory from /proc")
@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_by_their_header(name: str) -> None:
    decode_image(HALVES["PNG"]), decode_image(HALVES["GIF"]), decode_image(HALVES["WEBP"])
    memory, start = resident_bytes(), time.perf_counter()
    assert reason(BOMBS[name]) == "too_large"
    assert time.perf_counter() - start < 0.05
    assert resident_bytes() - memory < 20 * 2**20


def test_pictures_up_to_the_limit_are_read() -> None:
    image = decode_image(encode(Image.new("1", (8000, 1000), 1), "PNG"))
    assert image.shape == (3, 1000, 8000) and image.min() == 255


CORRUPTIONS = """
import random, sys
from PIL import Image
sys.path.insert(0, "tests/vision_core/images")
from test_decode import HALVES
from vision_core.images.decode import UnreadableImage, decode_image

dice = random.Random(0)
outcomes = {"read": 0, "refused": 0}
for format in ("JPEG", "PNG", "WEBP", "GIF"):
    for case in range(60):
        data = bytearray(HALVES[format])
        if case % 3 == 0:
            del data[dice.randrange(len(data)):]
        elif case % 3 == 1:
            data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
        else:
            for _ in range(20):
                data[dice.randrange(len(data))] = dice.randrange(256)
        for channels in (3, 1):
            try:
                decode_image(bytes(data), channels)
                outcomes["read"] += 1
            except UnreadableImage:
                outcomes["refused"] += 1
print(outcomes["read"], outcomes["refused"])
"""


def test_random_corruptions_raise_nothing_else_and_end_no_process() -> None:
    done = subprocess.run(
        [sys.executable, "-c", CORRUPTIONS], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    read, refused = map(int, done.stdout.split())
    assert read + refused == 480
    assert refused > 200 and read > 50  # the faults really fired


def test_one_channel_is_luminance() -> None:
    image = decode_image(READABLE["rgba"], 1)
    reference = np.array(Image.open(io.BytesIO(READABLE["rgba"])).convert("L")) / 255
    assert image.dtype == torch.float32 and image.shape == (1, 64, 96)
    np.testing.assert_allclose(image[0].numpy(), reference, atol=1e-6)
    # ITU-R 601-2
    np.testing.assert_allclose(image[0].numpy(), SMOOTH @ [0.299, 0.587, 0.114] / 255, atol=0.5 / 255 + 1e-3)


def test_one_channel_keeps_sixteen_bits() -> None:
    values = np.random.default_rng(2).integers(0, 65536, (16, 24), dtype=np.uint16)
    np.testing.assert_allclose(decode_image(encode(values, "PNG"), 1)[0].numpy(), values / 65535, atol=1e-7)


def test_pictures_have_no_five_channels() -> None:
    assert reason(HALVES["PNG"], 5) == "not_5_channels"
    assert reason(b"text", 5) == "not_an_image"


def grey_png(bits, rows, size=None):
    """A grey PNG of 1, 2 or 4 bits, which Pillow does not write (PNG specification, 11.2.2)."""
    lines = ["".join(f"{value:0{bits}b}" for value in row) for row in rows]
    raw = b"".join(b"\0" + int(line, 2).to_bytes(len(line) // 8, "big") for line in lines)

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", *(size or (len(rows[0]), len(rows))), bits, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(raw))
        + chunk(b"IEND", b"")
    )


def test_grey_that_pillow_would_spread_is_refused():
    rows = np.random.default_rng(1).integers(0, 2, (8, 8)).tolist()
    assert decode_values(grey_png(1, rows)).tolist() == rows
    for bits in (2, 4):
        with pytest.raises(UnreadableImage, match=f"not_numbers L;{bits}"):
            decode_values(grey_png(bits, rows))


@pytest.mark.parametrize(
    ("file_format", "mode"), [("PNG", "uint8"), ("PNG", "uint16"), ("TIFF", "uint8"), ("TIFF", "uint16")]
)
def test_numbers_come_back_exactly(file_format, mode):
    values = np.random.default_rng(2).integers(0, np.iinfo(mode).max, (9, 11), dtype=mode, endpoint=True)
    stream = io.BytesIO()
    Image.fromarray(values).save(stream, file_format)
    assert decode_values(stream.getvalue()).tolist() == values.tolist()


@pytest.mark.parametrize("file_format", ["JPEG", "WEBP", "GIF", "BMP"])
def test_formats_that_are_not_for_numbers(file_format):
    stream = io.BytesIO()
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(stream, file_format)
    with pytest.raises(UnreadableImage, match=f"not_numbers {file_format}"):
        decode_values(stream.getvalue())


def test_a_bomb_is_refused_by_its_header():
    bomb = grey_png(1, [[0] * 8] * 8, size=(60_000, 60_000))
    with pytest.raises(UnreadableImage, match="too_large"):
        decode_values(bomb)


def test_masks_are_as_large_as_the_source_allows_its_images_to_be(tmp_path, monkeypatch):
    assert decode_values(grey_png(1, [[0] * 8] * 8, size=(8, 8)), max_pixels=64).tolist() == [[0] * 8] * 8
    with pytest.raises(UnreadableImage, match="too_large"):
        decode_values(grey_png(1, [[0] * 8] * 8), max_pixels=63)
    side = 8_008  # more than 64 million pixels
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
        Image.new("L", (side, side), 3).save(tmp_path / name / "a.png", compress_level=1)
    source = open_source(f"folder:{tmp_path}/images?mask={tmp_path}/masks&max_pixels=65000000")
    assert source.annotations.mask(0).shape == (side, side)
    with pytest.raises(UnreadableImage, match="too_large"):
        open_source(f"folder:{tmp_path}/images?mask={tmp_path}/masks").annotations.mask(0)


def test_large_masks_of_tiff_that_pillow_does_not_read():
    tifffile = pytest.importorskip("tifffile")
    stream = io.BytesIO()
    tifffile.imwrite(stream, np.full((16, 16), 5, np.uint16), photometric="minisblack", compression="zstd")
    assert tiff.open_plain(stream.getvalue(), 256) is None
    assert decode_values(stream.getvalue(), max_pixels=256).tolist() == [[5] * 16] * 16
    with pytest.raises(UnreadableImage, match="too_large"):
        decode_values(stream.getvalue(), max_pixels=255)


def test_palette_indices_are_numbers_not_colours():
    picture = Image.fromarray(np.array([[0, 1], [2, 1]], dtype=np.uint8).repeat(8, 0).repeat(8, 1), "P")
    picture.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    assert decode_values(stream.getvalue())[::8, ::8].tolist() == [[0, 1], [2, 1]]


@pytest.mark.parametrize(
    "data", [b"", b"\x89PNG\r\n\x1a\n broken", encode(np.zeros((9, 9), np.uint8), "PNG")[:40]]
)
def test_bytes_that_are_no_picture(data):
    with pytest.raises(UnreadableImage):
        decode_values(data)


def test_signed_bytes_are_no_class_numbers():
    """Pillow reads int8 as unsigned: class -1 would be 255, which counts nowhere."""
    tifffile = pytest.importorskip("tifffile")
    stream = io.BytesIO()
    tifffile.imwrite(stream, np.full((16, 16), -1, np.int8), photometric="minisblack")
    with pytest.raises(UnreadableImage, match="unsupported_mode int8"):
        decode_values(stream.getvalue())
