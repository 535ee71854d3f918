"""All 16 bits of a PNG in colours or with alpha, by Pillow's own decoder. Pillow itself keeps the
high byte of such a file.

libpng, as torchvision binds it, ends the process by a signal where such a file is damaged (seen in
torchvision 0.29: 3 of 5 damaged files).
"""

import math
import struct
import zlib
from typing import NamedTuple

import numpy as np
from PIL import Image

from vision_core.unreadable import UnreadableImage, check_size

MAGIC = b"\x89PNG\r\n\x1a\n"
# places of the header IHDR in the file
HEADER_AT = 16
DEPTH_AT = 24
COLOUR_TYPE_AT = 25
INTERLACED_AT = 28
# colour types of the PNG specification
RGB = 2
GREY_ALPHA = 4
RGB_ALPHA = 6
# the seven passes of Adam7: first column, first row, columns from one to the next, rows
ADAM7 = (
    (0, 0, 8, 8),
    (4, 0, 8, 8),
    (0, 4, 4, 8),
    (2, 0, 4, 4),
    (0, 2, 2, 4),
    (1, 0, 2, 2),
    (0, 1, 1, 2),
)


class Layout(NamedTuple):
    """How Pillow's decoder is asked for the bytes of a pixel.

    Attributes:
        mode: of the picture that it makes.
        raw_modes: those whose first bands are the high and the low bytes.
        samples: how many a pixel has, alpha among them.
    """

    mode: str
    raw_modes: tuple[str, ...]
    samples: int


# a pixel of 16 bits, read as if its first byte were the last, gives the low byte; grey with alpha
# has the four bytes of one RGBA
LAYOUTS = {
    RGB: Layout("RGB", ("RGB;16B", "RGB;16L"), 3),
    RGB_ALPHA: Layout("RGBA", ("RGBA;16B", "RGBA;16L"), 4),
    GREY_ALPHA: Layout("RGBA", ("RGBA",), 2),
}


def is_deep(data: bytes) -> bool:
    """Whether `data` is a PNG of 16 bits in colours or with alpha."""
    return (
        data.startswith(MAGIC)
        and len(data) > COLOUR_TYPE_AT
        and data[DEPTH_AT] == 16
        and data[COLOUR_TYPE_AT] in LAYOUTS
    )


def read_deep(data: bytes, max_pixels: int) -> np.ndarray:
    """The numbers without alpha, uint16 `[1 or 3, H, W]`, as they are stored. Raises
    UnreadableImage."""
    size = struct.unpack_from(">II", data, HEADER_AT)
    check_size(*size, max_pixels)
    layout = LAYOUTS[data[COLOUR_TYPE_AT]]
    interlaced = data[INTERLACED_AT]
    pixels = _store_uncompressed(_pixel_data(data), size, 2 * layout.samples, interlaced)
    planes = []
    for raw_mode in layout.raw_modes:
        picture = Image.frombytes(layout.mode, size, pixels, "zip", raw_mode, interlaced)
        planes.append(np.asarray(picture))
    if len(planes) == 1:
        high = planes[0][..., :1]
        low = planes[0][..., 1:2]
    else:
        high = planes[0][..., :3]
        low = planes[1][..., :3]
    numbers = np.empty((high.shape[2], *high.shape[:2], 2), dtype=np.uint8)
    numbers[..., 0] = np.moveaxis(high, -1, 0)
    numbers[..., 1] = np.moveaxis(low, -1, 0)
    return numbers.view(">u2")[..., 0].astype(np.uint16)


def _pixel_data(data: bytes) -> bytes:
    """The content of the chunks IDAT, whose checksums are compared."""
    found = []
    place = len(MAGIC)
    while place + 12 <= len(data):
        length = int.from_bytes(data[place : place + 4], "big")
        kind = data[place + 4 : place + 8]
        end = place + 8 + length
        if end + 4 > len(data):
            raise UnreadableImage("truncated")
        if kind == b"IEND":
            return b"".join(found)
        if kind == b"IDAT":
            if zlib.crc32(data[place + 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
                raise UnreadableImage("corrupt")
            found.append(data[place + 8 : end])
        place = end + 4
    raise UnreadableImage("truncated")


def _store_uncompressed(
    compressed: bytes, size: tuple[int, int], bytes_of_pixel: int, interlaced: int
) -> bytes:
    """The same rows in a stream of zlib without compression, so that inflating it twice costs
    nothing. The stream must hold as many bytes as the size asks for; more are not looked at."""
    expected = _row_bytes(size, bytes_of_pixel, interlaced)
    inflater = zlib.decompressobj()
    rows = inflater.decompress(compressed, expected)
    if len(rows) < expected:
        raise UnreadableImage("truncated")
    inflater.decompress(inflater.unconsumed_tail, 1)  # behind its last byte the checksum is compared
    return zlib.compress(rows, 0)


def _row_bytes(size: tuple[int, int], bytes_of_pixel: int, interlaced: int) -> int:
    """The bytes of all rows, each with the byte of its filter; of an interlaced file the rows of
    all passes."""
    width, height = size
    if not interlaced:
        return height * (1 + width * bytes_of_pixel)
    total = 0
    for first_column, first_row, column_step, row_step in ADAM7:
        columns = math.ceil((width - first_column) / column_step)
        rows = math.ceil((height - first_row) / row_step)
        if columns > 0 and rows > 0:
            total += rows * (1 + columns * bytes_of_pixel)
    return total
