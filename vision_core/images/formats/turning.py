"""What brings stored rows and columns upright: EXIF 2.3, tag 0x0112, which is also the Orientation
of TIFF 6.0."""

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
    """`[C, H, W]` upright; an orientation that does not exist turns nothing."""
    rows_are_columns = orientation in (5, 6, 7, 8)
    from_the_right = orientation in (2, 3, 6, 7)
    from_the_bottom = orientation in (3, 4, 7, 8)
    upright = values.swapaxes(1, 2) if rows_are_columns else values
    upright = upright[:, :, ::-1] if from_the_right else upright
    return upright[:, ::-1] if from_the_bottom else upright
