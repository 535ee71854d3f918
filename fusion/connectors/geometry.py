"""Where an image lies on a square grid of tokens, whatever its aspect ratio."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from vision_core.errors import UserError

Fit = Literal["pad", "squash"]
Rule = Literal["exact", "published"]


class Box(NamedTuple):
    """The cells of a grid that an image covers: rows top to bottom - 1, columns left to right -
    1."""

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


def image_box(height: int, width: int, grid: int, fit: Fit = "pad", rule: Rule = "exact") -> Box:
    """The cells of a `grid x grid` that an image of `height x width` covers.

    fit: `pad`, in the middle of a square of its longer side; `squash`, resized to the whole square.
    rule: `exact` takes every cell that overlaps the image by any area, so that cells of a coarse
    grid are covered exactly where finer ones within them are; `published` is the arithmetic of the
    released Cambrian-1 and LLaVA code, the shorter side scaled and floored, then floor((grid -
    scaled) / 2) cells off at both ends.

    Raises UserError for an image without pixels, and with `published` for one so long that no cell
    is left.
    """
    if height < 1 or width < 1:
        raise UserError(f"an image of {height} x {width} pixels has no content; leave it out")
    if fit == "squash":
        return Box(0, grid, 0, grid)
    span = _exact_span if rule == "exact" else _published_span
    box = Box(*span(height, max(height, width), grid), *span(width, max(height, width), grid))
    if box.rows < 1 or box.columns < 1:
        raise UserError(
            f"an image of {height} x {width} pixels leaves no token of a grid of {grid} with the published arithmetic; use mask_rule='exact'"
        )
    return box


def _exact_span(length: int, side: int, grid: int) -> tuple[int, int]:
    """Cell j spans [j * side, (j + 1) * side) in units of 1 / grid pixel, the image [start * grid,
    (start + length) * grid)."""
    start = (side - length) // 2
    return start * grid // side, -(-(start + length) * grid // side)


def _published_span(length: int, side: int, grid: int) -> tuple[int, int]:
    padding = (grid - int(length * (grid / side))) // 2
    return padding, grid - padding


@dataclass(frozen=True)
class ImageLayout:
    """Where the images of a batch lie on any grid. sizes: (height, width) of each, as the user gave
    it; fit, rule: see `image_box`."""

    sizes: tuple[tuple[int, int], ...]
    fit: Fit = "pad"
    rule: Rule = "exact"

    @classmethod
    def of(
        cls, image_sizes: Tensor | Sequence[Sequence[int]], fit: Fit = "pad", rule: Rule = "exact"
    ) -> ImageLayout:
        """From `image_sizes` `[B, 2]`."""
        rows = image_sizes.tolist() if isinstance(image_sizes, Tensor) else image_sizes
        return cls(tuple((int(height), int(width)) for height, width in rows), fit, rule)

    def boxes(self, grid: int) -> list[Box]:
        """One for every image."""
        return [image_box(height, width, grid, self.fit, self.rule) for height, width in self.sizes]

    def mask(self, grid: int, device: torch.device | None = None) -> Tensor:
        """`[B, grid, grid]`, True where the image is."""
        mask = torch.zeros(len(self.sizes), grid, grid, dtype=torch.bool)
        for image, box in enumerate(self.boxes(grid)):
            mask[image, box.top : box.bottom, box.left : box.right] = True
        return mask.to(device)

    def cells(self, grid: int, device: torch.device | None = None) -> Tensor:
        """Places of the covered cells in the flattened `[B, grid, grid]`, `[N]`: image by image,
        row by row."""
        return self.mask(grid).flatten().nonzero().flatten().to(device)
