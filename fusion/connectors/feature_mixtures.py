"""The two mixtures of features of MMVP (Tong et al. 2024, "Eyes Wide Shut?"): tokens of several
encoders one after the other, or added up."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fusion.connectors.base import Connector, mlp
from fusion.connectors.geometry import ImageLayout


class InterleavedFeatures(Connector):
    """The interleaved mixture: an MLP for each encoder, and at every place one token of each
    encoder after the other."""

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
        self._require_own_grid()
        self.tokens_per_cell = len(encoder_widths)
        self.mm_projectors = nn.ModuleList(mlp(width, hidden_size, hidden_size) for width in encoder_widths)

    def aggregate(self, maps: Sequence[Tensor], layout: ImageLayout) -> tuple[Tensor, None]:
        projected = []
        for projector, patch_map in zip(self.mm_projectors, maps, strict=True):
            projected.append(projector(self.covered(patch_map, layout)))
        return torch.stack(projected, dim=1).flatten(0, 1), None


class AdditiveFeatures(Connector):
    """The additive mixture: a weighted sum of encoders of one width, through one MLP.

    shares: the weights of the sum, one for each encoder; by default they are equal.
    """

    def __init__(
        self,
        encoder_widths: Sequence[int],
        encoder_grids: Sequence[int],
        hidden_size: int,
        grid: int,
        *,
        newline: bool = True,
        shares: Sequence[float] | None = None,
    ) -> None:
        super().__init__(encoder_widths, encoder_grids, hidden_size, grid, newline=newline)
        count = len(encoder_widths)
        self._require_own_grid()
        self._require(len(set(encoder_widths)) == 1, "encoders of one width, as it adds their features")
        self.shares = [1 / count] * count if shares is None else list(shares)
        self._require(len(self.shares) == count, f"one share for each encoder, not {len(self.shares)}")
        self.mm_projector = mlp(encoder_widths[0], hidden_size, hidden_size)

    def aggregate(self, maps: Sequence[Tensor], layout: ImageLayout) -> tuple[Tensor, None]:
        mixed = sum(share * patch_map for share, patch_map in zip(self.shares, maps, strict=True))
        return self.mm_projector(self.covered(mixed, layout)), None
