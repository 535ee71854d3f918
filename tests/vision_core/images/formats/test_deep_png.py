"""PNG of 16 bits in colours and with alpha, against what libpng's own binding of imagecodecs wrote,
and another writer's interlaced rows."""

import struct
import zlib

import numpy as np
import pytest

from vision_core.images.decode import UnreadableImage, read_stored
from vision_core.images.formats.deep_png import MAGIC, is_deep, read_deep

COLOUR_TYPES = {2: 4, 3: 2, 4: 6}
ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def numbers(samples: int, height: int = 17, width: int = 13) -> np.ndarray:
    return np.random.default_rng(samples).integers(0, 65536, (height, width, samples), dtype=np.uint16)


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def written(values: np.ndarray, interlaced: bool = False, pieces: int = 1) -> bytes:
    """A PNG without filters, by the specification: rows of the passes of Adam7 where interlaced, in
    as many chunks."""
    passes = ADAM7 if interlaced else ((0, 0, 1, 1),)
    parts = [values[y::step_y, x::step_x] for x, y, step_x, step_y in passes]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for part in parts if part.size for row in part)
    packed = zlib.compress(rows)
    cuts = [
        packed[place * len(packed) // pieces : (place + 1) * len(packed) // pieces] for place in range(pieces)
    ]
    header = struct.pack(
        ">IIBBBBB", values.shape[1], values.shape[0], 16, COLOUR_TYPES[values.shape[2]], 0, 0, interlaced
    )
    return (
        MAGIC + chunk(b"IHDR", header) + b"".join(chunk(b"IDAT", cut) for cut in cuts) + chunk(b"IEND", b"")
    )


def without_alpha(values: np.ndarray) -> np.ndarray:
    return np.moveaxis(values[..., : {2: 1, 3: 3, 4: 3}[values.shape[2]]], -1, 0)


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("samples", COLOUR_TYPES)
def test_all_16_bits_are_those_that_were_written(samples: int, interlaced: bool) -> None:
    values = numbers(samples)
    data = written(values, interlaced, pieces=3)
    assert is_deep(data)
    assert np.array_equal(read_deep(data, 10**6), without_alpha(values))
    assert np.array_equal(read_stored(data).values, without_alpha(values))


@pytest.mark.parametrize("samples", COLOUR_TYPES)
def test_filtered_rows_of_libpng(samples: int) -> None:
    imagecodecs = pytest.importorskip("imagecodecs")
    values = np.cumsum(numbers(samples, 64, 64) % 300, axis=1, dtype=np.uint16)
    assert np.array_equal(read_deep(imagecodecs.png_encode(values), 10**6), without_alpha(values))


def test_what_is_damaged_has_its_reason() -> None:
    """Each of these ended the process by a signal where torchvision read them."""
    data = written(numbers(3))
    place = data.index(b"IDAT") + 20
    flipped = data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :]
    lying = MAGIC + chunk(b"IHDR", struct.pack(">IIBBBBB", 13, 999, 16, 2, 0, 0, 0)) + data[33:]
    for bad, reason in (
        (data[:-20], "truncated"),
        (data[: place + 9], "truncated"),
        (flipped, "corrupt"),
        (lying, "truncated"),
    ):
        with pytest.raises(UnreadableImage, match=reason):
            read_stored(bad)
