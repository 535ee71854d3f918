"""Which pixels of a depth map a benchmark counts, and how it clips predictions to its range."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vision_core.errors import UserError


@dataclass(frozen=True)
class DepthProtocol:
    """How a benchmark judges depths `[H, W]` in metres.

    Truths strictly between `min_depth` and `max_depth` count, inside `rows` and `columns` of images
    of `size`. Predictions are clipped to the range before they are compared.
    """

    name: str
    min_depth: float
    max_depth: float
    size: tuple[int, int]
    rows: slice
    columns: slice

    def counted(self, truth: Tensor) -> Tensor:
        """Where the benchmark counts, `[H, W]` bool. Raises UserError for another size: the crop
        says nothing about it."""
        if tuple(truth.shape) != self.size:
            found = " x ".join(map(str, truth.shape))
            expected = " x ".join(map(str, self.size))
            raise UserError(
                f"depth: {self.name} is judged on depths of {expected} pixels, not {found}; "
                "give the benchmark's own, or leave --depth_protocol out"
            )
        inside = torch.zeros_like(truth, dtype=torch.bool)
        inside[self.rows, self.columns] = True
        return inside & (truth > self.min_depth) & (truth < self.max_depth)

    def clipped(self, predicted: Tensor) -> Tensor:
        """Predictions within the range."""
        return predicted.clamp(self.min_depth, self.max_depth)

    def __str__(self) -> str:
        return (
            f"{self.name}'s evaluation: {self.min_depth} to {self.max_depth:g} m, "
            f"rows {self.rows.start} to {self.rows.stop - 1}, "
            f"columns {self.columns.start} to {self.columns.stop - 1}"
        )


# Eigen et al. 2014's crop of NYU's official test images, as BTS, AdaBins and DINOv2's evaluation
# use it
NYU = DepthProtocol(
    name="NYU",
    min_depth=0.001,
    max_depth=10.0,
    size=(480, 640),
    rows=slice(45, 471),
    columns=slice(41, 601),
)
PROTOCOLS = {"nyu": NYU}
