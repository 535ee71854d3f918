"""Connectors of one encoder: each of its tokens is projected by itself."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from fusion.connectors.base import Connector, mlp
from fusion.connectors.geometry import ImageLayout


class ProjectionConnector(Connector):
    """Base class: one projection of one encoder's tokens."""

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
        self._require(len(encoder_widths) == 1, "one encoder")
        self._require_own_grid()
        self.mm_projector = self.make_projector(encoder_widths[0], hidden_size)

    @staticmethod
    def make_projector(width: int, hidden_size: int) -> nn.Module:
        raise NotImplementedError

    def aggregate(self, maps: Sequence[Tensor], layout: ImageLayout) -> tuple[Tensor, None]:
        return self.mm_projector(self.covered(maps[0], layout)), None


class MlpConnector(ProjectionConnector):
    """The `mlp2x_gelu` of LLaVA-1.5: Linear, GELU, Linear on one encoder."""

    @staticmethod
    def make_projector(width: int, hidden_size: int) -> nn.Module:
        return mlp(width, hidden_size, hidden_size)


class LinearConnector(ProjectionConnector):
    """The connector of PaliGemma: one Linear on one encoder."""

    @staticmethod
    def make_projector(width: int, hidden_size: int) -> nn.Module:
        return nn.Linear(width, hidden_size)
