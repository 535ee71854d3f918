"""Where an image lies on a square grid of tokens, whatever its aspect ratio."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from vision_core.errors import UserError

Fit = Literal["pad", "squash"]
MaskRule = Literal["exact", "published"]


class Box(NamedTuple):
    """The cells of a grid that an image covers: rows top to bottom - 1, columns left to
    right - 1."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def rows(self) -> int:
        return self.bottom - self.top

    @property
    def columns(self) -> int:
        return self.right - self.left

    @property
    def num_cells(self) -> int:
        return self.rows * self.columns


def image_box(height: int, width: int, grid: int, fit: Fit = "pad", rule: MaskRule = "exact") -> Box:
    """The cells of a `grid x grid` that an image of `height x width` pixels covers.

    fit: `pad` puts the image in the middle of a square of its longer side; `squash` resizes it to
    the full square.
    rule: `exact` takes every cell that overlaps the image by any area, so that a cell of a coarse
    grid is covered exactly where one of the finer cells in it is. `published` is the arithmetic of
    the released Cambrian-1 and LLaVA code: the shorter side is scaled and floored, then
    floor((grid - scaled) / 2) cells are taken off at both ends.

    Raises UserError for an image without pixels, and with `published` for an image so long that no
    cell is left.
    """
    if height < 1 or width < 1:
        raise UserError(f"an image of {height} x {width} pixels has no content; leave it out")
    if fit == "squash":
        return Box(0, grid, 0, grid)
    covered_span = _exact_span if rule == "exact" else _published_span
    side = max(height, width)
    box = Box(*covered_span(height, side, grid), *covered_span(width, side, grid))
    if box.rows < 1 or box.columns < 1:
        raise UserError(
            f"an image of {height} x {width} pixels leaves no token of a grid of {grid} with the "
            "published arithmetic; use mask_rule='exact'"
        )
    return box


def _exact_span(length: int, side: int, grid: int) -> tuple[int, int]:
    """The first covered cell and the one behind the last, in exact arithmetic.

    In units of 1 / grid pixel, cell j spans [j * side, (j + 1) * side) and the image spans
    [start * grid, (start + length) * grid).
    """
    start = (side - length) // 2
    end = start + length
    return start * grid // side, -(-end * grid // side)


def _published_span(length: int, side: int, grid: int) -> tuple[int, int]:
    padding = (grid - int(length * (grid / side))) // 2
    return padding, grid - padding


def nearest_grid(side: int, grid: int) -> int:
    """The multiple of `grid` that is nearest to `side`, and at least `grid`."""
    return max(round(side / grid), 1) * grid


@dataclass(frozen=True)
class ImageLayout:
    """Where the images of a batch lie on any grid.

    sizes: (height, width) of each image as the user gave it. fit, rule: see `image_box`.
    """

    sizes: tuple[tuple[int, int], ...]
    fit: Fit = "pad"
    rule: MaskRule = "exact"

    @classmethod
    def of(
        cls, image_sizes: Tensor | Sequence[Sequence[int]], fit: Fit = "pad", rule: MaskRule = "exact"
    ) -> ImageLayout:
        """Make the layout from `image_sizes` `[B, 2]`."""
        rows = image_sizes.tolist() if isinstance(image_sizes, Tensor) else image_sizes
        return cls(tuple((int(height), int(width)) for height, width in rows), fit, rule)

    def boxes(self, grid: int) -> list[Box]:
        """The covered cells of each image."""
        return [image_box(height, width, grid, self.fit, self.rule) for height, width in self.sizes]

    def mask(self, grid: int, device: torch.device | None = None) -> Tensor:
        """`[B, grid, grid]` bool, True where the image is."""
        mask = torch.zeros(len(self.sizes), grid, grid, dtype=torch.bool)
        for image, box in enumerate(self.boxes(grid)):
            mask[image, box.top : box.bottom, box.left : box.right] = True
        return mask.to(device)

    def cells(self, grid: int, device: torch.device | None = None) -> Tensor:
        """The places `[N]` of the covered cells in the flattened `[B, grid, grid]`: image by image,
        row by row."""
        return self.mask(grid).flatten().nonzero().flatten().to(device)
