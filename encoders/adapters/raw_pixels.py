"""The image itself as its features: the baseline that every encoder must beat."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from encoders.base import Encoder, Features, LayerFeatures
from encoders.evaluation.baselines import raw_pixels
from encoders.preprocess import ImageTransform

STRIDE, SIDE = 8, 32


class RawPixels(Encoder):
    """Pixels in 0..1. `patch_map`: the 8 x 8 pixels of each patch, less 0.5, `[B, 192, H / 8, W /
    8]`. `pooled`: the image at 32 x 32, `[B, 3072]`."""

    library = "raw_pixels"
    layer_widths, num_channels, stride, pooled_width = (3 * STRIDE**2,), 3, STRIDE, 3 * SIDE**2

    def __init__(self, transform: ImageTransform | None = None, layers: Sequence[int] = (-1,)) -> None:
        super().__init__(
            transform or ImageTransform((64, 64), (0.0,), (1.0,)),
            layers=layers,
            norm=False,
            source="raw_pixels",
        )

    def architecture(self) -> dict[str, Any]:
        return {}

    def features(self, pixel_values: Tensor, layers: tuple[int, ...]) -> Features:
        patches = F.pixel_unshuffle(pixel_values, STRIDE) - 0.5
        return Features(
            tuple(LayerFeatures(number, patches, None, False) for number in layers),
            raw_pixels(pixel_values, SIDE),
        )
