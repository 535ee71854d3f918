"""Connectors that put features side by side in the channels and project them together."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fusion.connectors.base import Connector, mlp
from fusion.connectors.geometry import ImageLayout


class ChannelConcat(Connector):
    """The channels of all encoders side by side, through an MLP.

    num_layers: 2 as in Eagle (sum of widths -> D_h -> D_h), or 3 as in the fused MLP of Prismatic
    (sum of widths -> 4 * sum -> D_h -> D_h).
    """

    def __init__(
        self,
        encoder_widths: Sequence[int],
        encoder_grids: Sequence[int],
        hidden_size: int,
        grid: int,
        *,
        newline: bool = True,
        num_layers: int = 2,
    ) -> None:
        super().__init__(encoder_widths, encoder_grids, hidden_size, grid, newline=newline)
        self._require_own_grid()
        self._require(num_layers in (2, 3), f"num_layers of 2 or 3, not {num_layers}")
        width = sum(encoder_widths)
        layers: list[nn.Module] = []
        if num_layers == 3:
            layers = [nn.Linear(width, 4 * width), nn.GELU()]
            width = 4 * width
        self.mm_projector = nn.Sequential(*layers, *mlp(width, hidden_size, hidden_size))

    def aggregate(self, maps: Sequence[Tensor], layout: ImageLayout) -> tuple[Tensor, None]:
        return self.mm_projector(self.covered(torch.cat(list(maps), dim=1), layout)), None


class PixelShuffle(Connector):
    """Neighbouring cells side by side in the channels, then one Linear without bias (nanoVLM).

    An encoder's grid of r * `grid` gives r * r times fewer tokens than it has cells.
    """

    def __init__(
        self,
        encoder_widths: Sequence[int],
        encoder_grids: Sequence[int],
        hidden_size: int,
        grid: int,
        *,
        newline: bool = True,
    ) -> None:
        super().__init__(encoder_widths, encoder_grids, hidden_size, grid, newline=newline)
        width = 0
        for encoder_width, side in zip(encoder_widths, encoder_grids, strict=True):
            width += encoder_width * (side // grid) ** 2
        self.mm_projector = nn.Linear(width, hidden_size, bias=False)

    def aggregate(self, maps: Sequence[Tensor], layout: ImageLayout) -> tuple[Tensor, None]:
        shuffled = []
        for patch_map, side in zip(maps, self.encoder_grids, strict=True):
            shuffled.append(F.pixel_unshuffle(patch_map, side // self.grid))  # [B, r * r * C, grid, grid]
        return self.mm_projector(self.covered(torch.cat(shuffled, dim=1), layout)), None
