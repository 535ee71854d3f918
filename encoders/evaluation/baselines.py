"""Features without learning: what any encoder must beat."""

import torch
from torch import Tensor


def colour_histogram(images: Tensor, bins: int = 8) -> Tensor:
    """The share of pixels in each bin, of `[B, C, H, W]` in 0..1: joint `[B, bins^3]` for 3
    channels, `[B, C * bins]` otherwise."""
    index = (images * bins).long().clamp(0, bins - 1).flatten(2)
    if images.shape[1] == 3:
        index = ((index[:, 0] * bins + index[:, 1]) * bins + index[:, 2])[:, None]
        bins = bins**3
    counts = torch.zeros(*index.shape[:2], bins)
    counts.scatter_add_(2, index, torch.ones_like(index, dtype=torch.float32))
    return (counts / index.shape[-1]).flatten(1)


def channel_range(images: Tensor) -> tuple[Tensor, Tensor]:
    """The values of `[B, C, H, W]` that become 0 and 1, each `[1, C, 1, 1]`: 0 and 255 for uint8,
    each channel's least and greatest value for floats."""
    if images.dtype == torch.uint8:
        shape = (1, images.shape[1], 1, 1)
        return torch.zeros(shape), torch.full(shape, 255.0)
    return images.amin((0, 2, 3), keepdim=True), images.amax((0, 2, 3), keepdim=True)


def to_unit_range(images: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """`[B, C, H, W]` of any scale brought to 0..1 between `low` and `high` `[1, C, 1, 1]`, and
    clipped."""
    return ((images.float() - low) / (high - low).clamp_min(1e-12)).clamp(0, 1)
