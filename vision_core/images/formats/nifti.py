"""The reader of NIfTI: axial slices of volumes as physical values (nibabel reads the files)."""

from __future__ import annotations

import io
import math
import struct
from typing import BinaryIO

import numpy as np

from vision_core.errors import UserError
from vision_core.images.formats.optional_packages import NIBABEL
from vision_core.images.pixel_options import PixelOptions
from vision_core.images.stored import Stored, part_to_read, scale_of_type
from vision_core.unreadable import UnreadableImage, check_size, check_values

RGB = ("R", "G", "B")
NIFTI_2_MAGIC = b"n+2\0\r\n\x1a\n"
# where the numbers of a volume begin, behind its header and the header's extensions
EARLIEST_START = 352
EARLIEST_START_2 = 544  # in the second version
LATEST_START = 2**30
# nibabel's canonical axes: to the right, to the front, to the top
RIGHT = 0
FRONT = 1
TOP = 2


def count_parts(file: BinaryIO, num_channels: int) -> int:
    """Count the images of a volume: its axial slices, times the volumes along the fourth axis unless
    these are the channels.

    Only the header is read. Raises UnreadableImage.
    """
    return _count(_volume(file), num_channels)


def read(data: bytes, num_channels: int, options: PixelOptions, part: int | None) -> Stored:
    """Read one axial slice. `part` counts the slices of the first volume from the feet to the head,
    then those of the next.

    Axial is the last axis of the canonical orientation (RAS+, nibabel's `as_closest_canonical`).
    Rows go from the front to the back and columns from the patient's right to the left, as DICOM
    has axial slices. Values are those of nibabel's `get_fdata`, with scl_slope and scl_inter. A
    fourth axis of `num_channels` volumes is the channels.

    Raises:
        UnreadableImage: several_images without `part`, corrupt, or not a volume of numbers.
        UserError: nibabel is not installed.
    """
    volume = _volume(io.BytesIO(data))
    slices = _four_axes(volume.shape)[_axis_to(volume, TOP)]
    time, height = divmod(part_to_read(part, _count(volume, num_channels)), slices)
    times = slice(None) if _is_bands(volume, num_channels) else slice(time, time + 1)
    values = _slice(volume, height, times, options.max_pixels)
    return Stored(values, scale_of_type(values.dtype), is_colour=volume.get_data_dtype().names == RGB)


def promised_bytes(head: bytes) -> int | None:
    """How many bytes a file has by the first 352 of them, or None where they do not say it."""
    second_version = head.startswith(NIFTI_2_MAGIC, 4)
    order = "<" if head.startswith((b"\x5c\x01\0\0", b"\x1c\x02\0\0")) else ">"
    if second_version:
        axes, *sides = struct.unpack_from(f"{order}8q", head, 16)
        bits = struct.unpack_from(f"{order}h", head, 14)[0]
        start = struct.unpack_from(f"{order}q", head, 168)[0]
    else:
        axes, *sides = struct.unpack_from(f"{order}8h", head, 40)
        bits = struct.unpack_from(f"{order}h", head, 72)[0]
        start = struct.unpack_from(f"{order}f", head, 108)[0]
    if not (1 <= axes <= 7 and bits > 0 and 0 <= start < LATEST_START and min(sides[:axes]) > 0):
        return None
    earliest = EARLIEST_START_2 if second_version else EARLIEST_START
    return max(int(start), earliest) + math.prod(sides[:axes]) * bits // 8


def _count(volume, num_channels: int) -> int:
    shape = _four_axes(volume.shape)
    slices = shape[_axis_to(volume, TOP)]
    return slices if _is_bands(volume, num_channels) else slices * shape[3]


def _volume(file: BinaryIO):
    """The open volume, whose numbers are not read yet."""
    try:
        import nibabel
    except ImportError:
        raise UserError(NIBABEL.cure) from None
    second_version = file.read(12).endswith(NIFTI_2_MAGIC)
    file.seek(0)
    kind = nibabel.Nifti2Image if second_version else nibabel.Nifti1Image
    try:
        volume = kind.from_stream(file)
    except Exception:  # nibabel raises a dozen types on bad bytes
        raise UnreadableImage("corrupt") from None
    dtype = volume.get_data_dtype()
    if not 2 <= len(volume.shape) <= 5 or math.prod(volume.shape[4:]) != 1:
        raise UnreadableImage(f"unsupported_nifti {len(volume.shape)} axes")
    if dtype.names != RGB and dtype.kind not in "uif":
        raise UnreadableImage(f"unsupported_nifti {dtype}")
    return volume


def _slice(volume, height: int, times: slice, max_pixels: int) -> np.ndarray:
    """The slice `[C, H, W]` at one height; nothing else is read."""
    shape = _four_axes(volume.shape)
    right = _axis_to(volume, RIGHT)
    front = _axis_to(volume, FRONT)
    top = _axis_to(volume, TOP)
    check_size(shape[right], shape[front], max_pixels)
    check_values(shape[right] * shape[front] * shape[3], max_pixels)
    where: list = [slice(None)] * 3 + [times]
    where[top] = shape[top] - 1 - height if _is_reversed(volume, top) else height
    try:
        plane = np.asarray(volume.dataobj[tuple(where[: len(volume.shape)])])
    except (OSError, ValueError, EOFError):
        raise UnreadableImage("truncated") from None
    plane = plane.reshape(shape[min(right, front)], shape[max(right, front)], -1)
    if right < front:
        plane = plane.swapaxes(0, 1)  # rows go from front to back, columns from right to left
    if not _is_reversed(volume, front):
        plane = plane[::-1]
    if not _is_reversed(volume, right):
        plane = plane[:, ::-1]
    return _channels_first(plane)


def _channels_first(plane: np.ndarray) -> np.ndarray:
    """`[H, W, C]`, or `[H, W, 1]` of records of colours, as `[C, H, W]` in a type of this machine."""
    if plane.dtype.names == RGB:
        return np.stack([plane[name][:, :, 0] for name in RGB])
    values = np.ascontiguousarray(np.moveaxis(plane, -1, 0))
    if values.dtype.kind == "f":
        return values.astype(np.float32)
    return values.astype(values.dtype.newbyteorder("="), copy=False)


def _is_bands(volume, num_channels: int) -> bool:
    return num_channels > 1 and _four_axes(volume.shape)[3] == num_channels


def _four_axes(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (*shape, 1, 1)[:4]


def _orientation(volume) -> np.ndarray:
    """The canonical axis and its direction for each axis of the file, `[axes, 2]`."""
    import nibabel

    orientation = nibabel.io_orientation(volume.affine)
    if np.isnan(orientation).any():
        raise UnreadableImage("unsupported_nifti orientation")
    return orientation


def _axis_to(volume, direction: int) -> int:
    return int(np.flatnonzero(_orientation(volume)[:, 0] == direction)[0])


def _is_reversed(volume, axis: int) -> bool:
    return _orientation(volume)[axis, 1] == -1
