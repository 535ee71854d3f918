"""Reads arrays that NumPy saved: `.npy`."""

import io
import math

import numpy as np

from vision_core.images.pixel_options import PixelOptions
from vision_core.images.stored import Stored, scale_of_type
from vision_core.images.unreadable import UnreadableImage, check_size, check_values


def read(data: bytes, num_channels: int, options: PixelOptions, part: int | None) -> Stored:
    """The array of a `.npy` file: two axes, or three with the channels first or last."""
    stream = io.BytesIO(data)
    version = np.lib.format.read_magic(stream)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read_header(stream)
    if dtype.hasobject:
        raise UnreadableImage("python_objects")
    axis = _check_bands(shape, dtype, num_channels, options.max_pixels)
    if math.prod(shape) * dtype.itemsize > len(data) - stream.tell():
        raise UnreadableImage("truncated")
    array = np.load(io.BytesIO(data), allow_pickle=False)
    values = array[None] if axis is None else np.moveaxis(array, axis, 0)
    return Stored(values, scale_of_type(dtype))


def _check_bands(shape: tuple[int, ...], dtype: np.dtype, num_channels: int, max_pixels: int) -> int | None:
    """The channels' axis. Refuse by what the header says, before anything of that size is allocated."""
    if dtype.kind not in "uifb":
        raise UnreadableImage(f"unsupported_type {dtype}")
    axis = _channel_axis(shape, num_channels)
    height, width = shape if axis is None else (shape[1:] if axis == 0 else shape[:2])
    check_size(width, height, max_pixels)
    check_values(math.prod(shape), max_pixels)
    return axis


def _channel_axis(shape: tuple[int, ...], num_channels: int) -> int | None:
    """Which axis, first (0) or last (2), holds the channels; None where the only channel has no axis."""
    if len(shape) == 2 and num_channels in (1, 3):
        return None
    if len(shape) != 3 or num_channels not in (shape[0], shape[2]):
        raise UnreadableImage(f"not_{num_channels}_channels")
    if shape[0] == shape[2]:
        raise UnreadableImage("ambiguous_channels")
    return 0 if shape[0] == num_channels else 2
