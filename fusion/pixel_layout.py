"""The pixels of images for several encoders as one tensor, a row for each image: `[images, P]`.

Encoders see squares of different sides, which no single tensor `[images, C, side, side]` holds. A
row has an image's pixels for the first encoder, flattened, then those for the second, and so on: P
= sum of C * side * side. Whatever cuts, joins, repeats or moves a batch by its images then needs to
know nothing about encoders: pipelines, TRL, accelerate.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vision_core.errors import UserError

CHANNELS = 3  # fused encoders see pictures


def join_views(views: Sequence[Tensor]) -> Tensor:
    """`[images, C, side, side]` of every encoder to `[images, P]`."""
    return torch.cat([view.flatten(1) for view in views], dim=1)


def split_views(pixel_values: Tensor, sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
    """The inverse of `join_views`, as views into `pixel_values`, without copies.

    sizes: (height, width) of what each encoder sees. Raises UserError where P is not the sum of
    them.
    """
    flat = pixel_values.flatten(1)
    numbers = [CHANNELS * height * width for height, width in sizes]
    if flat.shape[1] != sum(numbers):
        squares = ", ".join(f"{CHANNELS} x {height} x {width}" for height, width in sizes)
        raise UserError(
            f"pixel_values has {flat.shape[1]} numbers for each image, and the encoders see {squares}, which are {sum(numbers)}; "
            "make pixel_values with this model's image processor"
        )
    return [
        part.unflatten(1, (CHANNELS, *size))
        for part, size in zip(flat.split(numbers, dim=1), sizes, strict=True)
    ]
