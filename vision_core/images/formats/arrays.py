"""The reader of arrays that NumPy saved: `.npy`, and `.npz`, a zip of them."""

import io
import math
import zipfile
from typing import BinaryIO

import numpy as np

from vision_core.images.pixel_options import PixelOptions
from vision_core.images.stored import Stored, scale_of_type
from vision_core.unreadable import UnreadableImage, check_inflation, check_size, check_values

NPY_MAGIC = b"\x93NUMPY"
ZIP_MAGIC = b"PK\x03\x04"


def read(data: bytes, num_channels: int, options: PixelOptions, part: int | None) -> Stored:
    """Read an array of two axes, or of three with the channels first or last. A `.npz` has one
    array, or gives number `part` by sorted name."""
    if data.startswith(NPY_MAGIC):
        return _read_array(io.BytesIO(data), num_channels, options.max_pixels)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        names = _names(archive)
        if part is None and len(names) > 1:
            raise UnreadableImage(f"several_images arrays={len(names)}")
        name = names[part or 0]
        packed = archive.getinfo(name).compress_size
        with archive.open(name) as file:
            stored = _read_array(file, num_channels, options.max_pixels, packed)
            file.read(1)  # behind its last byte zipfile compares the checksum
            return stored


def count_parts(file: BinaryIO, num_channels: int) -> int:
    """Count the arrays of a file. Raises UnreadableImage."""
    if file.read(len(NPY_MAGIC)) == NPY_MAGIC:
        return 1
    with zipfile.ZipFile(file) as archive:
        return len(_names(archive))


def _names(archive: zipfile.ZipFile) -> list[str]:
    names = sorted(name for name in archive.namelist() if name.endswith(".npy"))
    if not names:
        raise UnreadableImage("not_an_image")
    return names


def _read_array(file: BinaryIO, num_channels: int, max_pixels: int, packed: int | None = None) -> Stored:
    """Read what the header promises and no more: a zip may hold more than it says, and a pickle is
    never loaded. packed: bytes in the zip."""
    read_header = np.lib.format.read_array_header_2_0
    if np.lib.format.read_magic(file) == (1, 0):
        read_header = np.lib.format.read_array_header_1_0
    shape, columns_first, dtype = read_header(file)
    if dtype.hasobject:
        raise UnreadableImage("python_objects")
    axis = _check_bands(shape, dtype, num_channels, max_pixels)
    size = math.prod(shape) * dtype.itemsize
    if packed is not None:
        check_inflation(size, packed)
    content = file.read(size)
    if len(content) < size:
        raise UnreadableImage("truncated")
    array = np.frombuffer(content, dtype).reshape(shape, order="F" if columns_first else "C")
    values = array[None] if axis is None else np.moveaxis(array, axis, 0)
    return Stored(values, scale_of_type(dtype))


def _check_bands(shape: tuple[int, ...], dtype: np.dtype, num_channels: int, max_pixels: int) -> int | None:
    """The axis of the channels, see `_channel_axis`. What the header promises is refused before
    anything of that size is allocated."""
    if dtype.kind not in "uifb":
        raise UnreadableImage(f"unsupported_type {dtype}")
    axis = _channel_axis(shape, num_channels)
    height, width = shape[1:] if axis == 0 else shape[:2]
    check_size(width, height, max_pixels)
    check_values(math.prod(shape), max_pixels)
    return axis


def _channel_axis(shape: tuple[int, ...], num_channels: int) -> int | None:
    """The axis that holds the channels, 0 or 2, or None where the only channel has no axis. One
    channel of grey is also taken where three are asked for."""
    if len(shape) == 2 and num_channels in (1, 3):
        return None
    ends = (shape[0], shape[2]) if len(shape) == 3 else ()
    count = 1 if num_channels == 3 and 3 not in ends else num_channels
    if count not in ends:
        raise UnreadableImage(f"not_{num_channels}_channels")
    if ends == (count, count):
        raise UnreadableImage("ambiguous_channels")
    return 0 if ends[0] == count else 2
