"""The numbers of an image as its file stores them, before black and white are chosen."""

from typing import NamedTuple

import numpy as np

from vision_core.images.pixel_options import PixelOptions
from vision_core.unreadable import UnreadableImage


class Stored(NamedTuple):
    """The numbers of one image.

    Attributes:
        values: `[C, H, W]` in the type in which the file has them, after the file's own rescaling
            where it has one (DICOM, FITS, NIfTI).
        full_scale: the values of black and of white where the format defines them, or None: (0,
            65535) for uint16, and (65535, 0) where the file says that white is zero.
        missing: `[C, H, W]` bool, true where the file has no value (nodata, NaN), or None where
            every value is there.
        is_colour: whether the channels are red, green and blue, so that their luminance is an image
            of one channel.
    """

    values: np.ndarray
    full_scale: tuple[float, float] | None
    missing: np.ndarray | None = None
    is_colour: bool = False


def scale_of_type(dtype: np.dtype) -> tuple[float, float] | None:
    """The values of black and of white of a type that pictures use; None for any other type."""
    return {"bool": (0, 1), "uint8": (0, 255), "uint16": (0, 65535)}.get(dtype.name)


def is_nodata(values: np.ndarray, nodata: float) -> np.ndarray:
    """Where `values` hold `nodata`, compared in their own type: an unsigned type never holds -9999,
    and 0.1 is rounded to float32."""
    if np.isnan(nodata):
        return np.isnan(values)
    if values.dtype.kind == "f":
        with np.errstate(over="ignore"):
            return values == values.dtype.type(nodata)
    return values == nodata


def as_asked(stored: Stored, options: PixelOptions) -> Stored:
    """Apply the source's options: mark its `nodata` as missing, and take the `bands` that it
    names."""
    stored = with_missing(stored, options.nodata)
    if options.bands is None:
        return stored
    return with_bands(stored, options.bands, options.bands_of)


def with_bands(stored: Stored, bands: tuple[int, ...], bands_of: int) -> Stored:
    """Take some bands, counted from 1, of an image that should have `bands_of` of them. Raises
    UnreadableImage where it has another number."""
    if len(stored.values) != bands_of:
        raise UnreadableImage(f"not_{bands_of}_channels {len(stored.values)} bands")
    chosen = [band - 1 for band in bands]
    missing = None if stored.missing is None else stored.missing[chosen]
    is_colour = stored.is_colour and bands == (1, 2, 3)
    return Stored(stored.values[chosen], stored.full_scale, missing, is_colour)


def with_missing(stored: Stored, nodata: float | None) -> Stored:
    """Mark NaN and the user's `nodata` as missing."""
    marks = [] if stored.missing is None else [stored.missing]
    if stored.values.dtype.kind == "f":
        marks.append(np.isnan(stored.values))
    if nodata is not None:
        marks.append(is_nodata(stored.values, nodata))
    missing = np.logical_or.reduce(marks) if marks else None
    if missing is not None and not missing.any():
        missing = None
    return stored._replace(missing=missing)


def part_to_read(part: int | None, count: int) -> int:
    """Choose which of the `count` images of a file is read. Raises UnreadableImage where the file
    has none, or several and `part` does not say which."""
    if not count:
        raise UnreadableImage("no_pixels")
    if part is None and count > 1:
        raise UnreadableImage("several_images")
    if (part or 0) >= count:
        raise UnreadableImage("no_such_part")
    return part or 0
