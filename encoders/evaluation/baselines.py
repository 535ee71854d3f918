"""Features without learning: what any encoder must beat."""

import torch
from torch import Tensor
from torch.nn import functional as F


def raw_pixels(images: Tensor, side: int = 32) -> Tensor:
    """`[n, C, H, W]` in 0..1 -> `[n, C * side * side]`: pixels at `side x side`, centred at 0.5."""
    if images.shape[-2:] != (side, side):
        images = F.interpolate(images, size=(side, side), mode="bicubic", antialias=True)
    return images.flatten(1) - 0.5


def colour_histogram(images: Tensor, bins: int = 8) -> Tensor:
    """`[n, C, H, W]` in 0..1 -> share of pixels per bin: joint `bins^3` for 3 channels, `C * bins` otherwise."""
    index = (images * bins).long().clamp(0, bins - 1).flatten(2)
    if images.shape[1] == 3:
        index = ((index[:, 0] * bins + index[:, 1]) * bins + index[:, 2])[:, None]
        bins = bins**3
    counts = torch.zeros(len(images), index.shape[1], bins)
    counts.scatter_add_(2, index, torch.ones_like(index, dtype=torch.float32))
    return (counts / index.shape[-1]).flatten(1)
