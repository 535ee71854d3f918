"""The reader of FITS: image HDUs as physical values (astropy reads the files)."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO, NamedTuple

import numpy as np

from vision_core.errors import UserError
from vision_core.images.formats.optional_packages import ASTROPY
from vision_core.images.formats.quiet import quiet_libraries
from vision_core.images.pixel_options import PixelOptions
from vision_core.images.stored import Stored, part_to_read, scale_of_type
from vision_core.unreadable import UnreadableImage, check_size, check_values


class Plane(NamedTuple):
    """Where an image lies: in which HDU, and at which place along the axes before the last two. A
    place of None takes the first of three axes as bands."""

    hdu: int
    place: tuple[int, ...] | None


def count_parts(file: BinaryIO, num_channels: int) -> int:
    """Count the images of a file; 0 for tables alone. Raises UnreadableImage."""
    with _open_hdus(file) as hdus:
        return len(_planes(hdus, num_channels))


def read(data: bytes, num_channels: int, options: PixelOptions, part: int | None) -> Stored:
    """Read one image, after BSCALE and BZERO. `part` counts through all image HDUs. BLANK and NaN
    are missing.

    An HDU with two axes is an image. A cube whose first axis (as NumPy counts; NAXIS3) has
    `num_channels` planes is one image with these bands; of any other cube every plane is an image.
    Row 0 is the first row of the file, as astropy gives it; viewers of the sky show it at the
    bottom.

    Raises:
        UnreadableImage: several_images without `part`, no_pixels, corrupt.
        UserError: astropy is not installed.
    """
    with _open_hdus(io.BytesIO(data)) as hdus:
        planes = _planes(hdus, num_channels)
        values = _values(hdus, planes[part_to_read(part, len(planes))], options.max_pixels)
    dtype = np.float32 if values.dtype.kind == "f" else values.dtype.newbyteorder("=")
    native = values.astype(dtype, copy=False)
    return Stored(native, scale_of_type(native.dtype))


@contextmanager
def _open_hdus(file: BinaryIO) -> Iterator:
    """The HDUs of a file. Raises UnreadableImage, UserError without astropy."""
    try:
        from astropy.io import fits
    except ImportError:
        raise UserError(ASTROPY.cure) from None
    try:
        with quiet_libraries(), fits.open(file, memmap=False, lazy_load_hdus=True) as hdus:
            yield hdus
    except (UserError, UnreadableImage, MemoryError):
        raise
    except Exception:  # astropy raises a dozen types on bad bytes
        raise UnreadableImage("corrupt") from None


def _planes(hdus, num_channels: int) -> list[Plane]:
    """All images of a file, in order."""
    planes = []
    for number, hdu in enumerate(hdus):
        shape = hdu.shape if hdu.is_image else ()
        if len(shape) == 2:
            planes.append(Plane(number, ()))
        elif len(shape) == 3 and shape[0] == num_channels:
            planes.append(Plane(number, None))
        elif len(shape) > 2:
            planes += [Plane(number, place) for place in np.ndindex(shape[:-2])]
    return planes


def _values(hdus, plane: Plane, max_pixels: int) -> np.ndarray:
    """The numbers `[C, H, W]` of a plane; nothing else is read where the HDU is not compressed."""
    hdu = hdus[plane.hdu]
    height, width = hdu.shape[-2:]
    check_size(width, height, max_pixels)
    bands = hdu.shape[0] if plane.place is None else 1
    check_values(bands * height * width, max_pixels)
    if plane.place is None:
        return np.asarray(hdu.section[:, :, :])
    return np.asarray(hdu.section[(*plane.place, slice(None), slice(None))])[None]
