"""Turns stored rows and columns upright, as EXIF 2.3 says in tag 0x0112, which is also the
Orientation of TIFF 6.0."""

import numpy as np
from PIL import Image

UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def turned(values: np.ndarray, orientation: int) -> np.ndarray:
    """Values `[C, H, W]` turned upright; an orientation that does not exist turns nothing."""
    if orientation in (5, 6, 7, 8):  # rows are stored as columns
        values = values.swapaxes(1, 2)
    if orientation in (2, 3, 6, 7):  # from the right
        values = values[:, :, ::-1]
    if orientation in (3, 4, 7, 8):  # from the bottom
        values = values[:, ::-1]
    return values
