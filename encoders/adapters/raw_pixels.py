"""The image itself as its features: the baseline that every encoder must beat."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from encoders.base import Encoder, EncoderConfig, Features, LayerFeatures
from encoders.positions import refuse_position_options
from encoders.preprocess import ImageTransform

STRIDE = 8
SIDE = 32


class RawPixels(Encoder):
    """Pixels in 0..1. `patch_map`: the 8 x 8 pixels of each patch, less 0.5, `[B, 192, H / 8, W /
    8]`. `pooled`: the image at 32 x 32, `[B, 3072]`."""

    library = "raw_pixels"
    layer_widths = (3 * STRIDE**2,)
    num_channels = 3
    stride = STRIDE
    pooled_width = 3 * SIDE**2

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
        maps = tuple(LayerFeatures(number, patches, None, False) for number in layers)
        return Features(maps, resized_pixels(pixel_values, SIDE))


def resized_pixels(images: Tensor, side: int = SIDE) -> Tensor:
    """Images `[B, C, H, W]` in 0..1 as `[B, C * side * side]`: their pixels at `side` x `side`, less
    0.5."""
    if images.shape[-2:] != (side, side):
        images = F.interpolate(images, size=(side, side), mode="bicubic", antialias=True)
    return images.flatten(1) - 0.5


# -- the adapter (see encoders/adapters/__init__.py)


def load(
    name: str, *, source: str, image_size: tuple[int, int] | None, dtype: torch.dtype, **options: Any
) -> RawPixels:
    """The baseline, of which `layers` alone can be chosen."""
    refuse_position_options(options, source)
    return RawPixels(layers=options["layers"])


def build(config: EncoderConfig, *, dtype: torch.dtype, attn_implementation: str | None = None) -> RawPixels:
    """The baseline with the preprocessing of the config."""
    return RawPixels(config.image_transform())


def check(name: str, *, source: str, has_weights: bool) -> None:
    """Do nothing: there is nothing that could be missing."""
