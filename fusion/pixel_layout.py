"""The pixels of images for several encoders as one tensor `[B, P]`, with a row for each image.

Encoders see squares of different sides, which no single tensor `[B, C, side, side]` holds. A row
has an image's pixels for the first encoder, flattened, then those for the second, and so on:
P = sum of C * side * side. So programs that cut, join, repeat or move a batch by its images, such as
pipelines, TRL and accelerate, need to know nothing about encoders.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vision_core.errors import UserError

CHANNELS = 3  # fused encoders see pictures


def join_views(views: Sequence[Tensor]) -> Tensor:
    """Join what each encoder sees, `[B, C, side, side]`, into `[B, P]`."""
    return torch.cat([view.flatten(1) for view in views], dim=1)


def split_views(pixel_values: Tensor, sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
    """Undo `join_views` without copies: what is returned are views into `pixel_values`.

    sizes: (height, width) of what each encoder sees. Raises UserError where P does not fit them.
    """
    flat = pixel_values.flatten(1)
    numbers = [CHANNELS * height * width for height, width in sizes]
    if flat.shape[1] != sum(numbers):
        squares = ", ".join(f"{CHANNELS} x {height} x {width}" for height, width in sizes)
        raise UserError(
            f"pixel_values has {flat.shape[1]} numbers for each image, and the encoders see {squares}, "
            f"which are {sum(numbers)}; make pixel_values with this model's image processor"
        )
    views = []
    for part, size in zip(flat.split(numbers, dim=1), sizes, strict=True):
        views.append(part.unflatten(1, (CHANNELS, *size)))
    return views
