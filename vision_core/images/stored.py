"""What a file of numbers holds, before anybody decides what is black and what is white."""

from typing import NamedTuple

import numpy as np


class Stored(NamedTuple):
    """The numbers of one image.

    Attributes:
        values: `[C, H, W]` in the type in which the file has them, after the file's own rescaling where it has one (DICOM, FITS, NIfTI).
        full_scale: the values of black and of white where the format says them (0 and 65535 for uint16), or None.
        missing: `[C, H, W]` bool, true where the file has no value (nodata, NaN), or None where all are there.
    """

    values: np.ndarray
    full_scale: tuple[float, float] | None
    missing: np.ndarray | None = None


def range_of_type(dtype: np.dtype) -> tuple[float, float] | None:
    """Black and white of values that are stored as uint8 or uint16; None for types that also hold what no picture is made of."""
    if dtype.kind == "u" and dtype.itemsize <= 2:
        return 0.0, 2.0 ** (8 * dtype.itemsize) - 1
    return None
