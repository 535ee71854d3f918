"""The Spatial Vision Aggregator (SVA) of Cambrian-1 (Tong et al. 2024), as it was released: learned
queries on a grid, each of which looks at the same place of the image in every encoder.

How a query looks at its place is equation 1 of the paper, see `fusion.connectors.cross_attention`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fusion.connectors.base import Connector, mlp
from fusion.connectors.cross_attention import AttentionPath, VisionCrossAttentionLayer
from fusion.connectors.geometry import ImageLayout
from fusion.connectors.windows import VisionWindows
from vision_core.errors import UserError


def split_into_windows(patch_map: Tensor, grid: int) -> Tensor:
    """Collect under each cell of a grid the tokens of a finer map that lie there: `[B, C, r * grid,
    r * grid]` to `[B * grid * grid, r * r, C]`, both row by row.

    windows[b * grid^2 + i * grid + j, u * r + v] = patch_map[b, :, i * r + u, j * r + v]
    """
    side = patch_map.shape[-1] // grid
    windows = patch_map.unflatten(3, (grid, side)).unflatten(2, (grid, side))  # [B, C, i, u, j, v]
    return windows.permute(0, 2, 4, 3, 5, 1).flatten(0, 2).flatten(1, 2)


class SpatialVisionAggregator(Connector):
    """Windowed cross-attention: maps of several encoders to one token for each cell of a grid. The
    defaults are those of the release.

    With the maps F_k of the encoders, the query at cell (i, j) of a group of queries goes through

        x_k   = LN(W_2 GELU(W_1 F_k))                   each map projected to `width` channels
        q_ij  = one learned vector, the same at all cells
        q_ij  = layer(q_ij, windows of all x_k under (i, j), context)       `depth` times
        token = W_4 GELU(W_3 [q_ij of all groups])      side by side in the channels, to D_h

    The layer is `VisionCrossAttentionLayer`, with equation 1 of the paper in it.

    Args:
        encoder_widths, encoder_grids, hidden_size, grid, newline: see `Connector`.
        width: D, of projected tokens and queries.
        num_heads: heads of the attention.
        depth: layers in every group.
        group_grids: the grid of each group of queries. A grid that differs from `grid` is resized
            to it (bilinear). Default: one group of `grid`.
        context: the global context is the mean of the projected tokens, padding included, of the
            `first` encoder (as released) or of `all`.
        zero_init_output, shared_norms: see `VisionCrossAttentionLayer`.
        path: how attention is computed: `fast`, or `plain`, the formula as it is written. Both give
            the same.
    """

    def __init__(
        self,
        encoder_widths: Sequence[int],
        encoder_grids: Sequence[int],
        hidden_size: int,
        grid: int = 24,
        *,
        newline: bool = True,
        width: int = 1024,
        num_heads: int = 16,
        depth: int = 3,
        group_grids: Sequence[int] | None = None,
        context: Literal["first", "all"] = "first",
        zero_init_output: bool = False,
        shared_norms: bool = False,
        path: AttentionPath = "fast",  # published configs may hold this name
    ) -> None:
        super().__init__(encoder_widths, encoder_grids, hidden_size, grid, newline=newline)
        _check_options(width, num_heads, depth, context, path)
        self.width = width
        self.num_heads = num_heads
        self.context = context
        self.shared_norms = shared_norms
        self.attention_path = path
        self.group_grids = tuple(group_grids or (grid,))
        self._refuse_uneven_groups()
        self.mm_projector_aux = nn.ModuleList(
            nn.Sequential(*mlp(each, width, width), nn.LayerNorm(width)) for each in encoder_widths
        )
        self.vision_query = nn.Parameter(torch.randn(len(self.group_grids), width) / width**0.5)
        self.vision_sampler = nn.ModuleList()
        for side in self.group_grids:
            self.vision_sampler.append(self._make_layers(side, depth, zero_init_output))
        self.mm_projector = mlp(width * len(self.group_grids), hidden_size, hidden_size)

    def window_sizes(self, grid: int) -> tuple[int, ...]:
        """The number of tokens under one cell of `grid`, in each encoder."""
        return tuple((side // grid) ** 2 for side in self.encoder_grids)

    def aggregate(self, maps: Sequence[Tensor], layout: ImageLayout) -> tuple[Tensor, VisionWindows]:
        projected = []
        for projector, patch_map in zip(self.mm_projector_aux, maps, strict=True):
            projected.append(projector(patch_map.movedim(1, -1)).movedim(-1, 1))  # [B, D, side, side]
        context = self._global_context(projected)
        covered = self._windows(projected, context, layout, self.grid)
        groups = []
        for index, side in enumerate(self.group_grids):
            windows = covered
            if side != self.grid:
                windows = self._windows(projected, context, layout, side, everywhere=True)
            groups.append(self._run_group(index, windows, layout))
        return self.mm_projector(torch.cat(groups, dim=-1)), covered

    def _make_layers(self, grid: int, depth: int, zero_init_output: bool) -> nn.ModuleList:
        """The layers of one group of queries on `grid`."""
        layers = nn.ModuleList()
        for _ in range(depth):
            layer = VisionCrossAttentionLayer(
                query_width=self.width,
                width=self.width,
                num_heads=self.num_heads,
                window_sizes=self.window_sizes(grid),
                zero_init_output=zero_init_output,
                shared_norms=self.shared_norms,
            )
            layers.append(layer)
        return layers

    def _global_context(self, projected: Sequence[Tensor]) -> Tensor:
        """`[B, D]`: the mean of each image's tokens, of one encoder or of all."""
        of_encoders = projected[:1] if self.context == "first" else projected
        means = [each.mean((2, 3)) for each in of_encoders]
        return torch.stack(means).mean(0)

    def _windows(
        self,
        projected: Sequence[Tensor],
        context: Tensor,
        layout: ImageLayout,
        grid: int,
        everywhere: bool = False,
    ) -> VisionWindows:
        """The windows of the covered cells of `grid`, or of all its cells.

        Nothing is masked in a window that lies completely in the padding.
        """
        cells = torch.arange(len(context) * grid * grid) if everywhere else layout.cells(grid)
        places = cells.to(context.device)
        tokens = []
        masks = []
        for patch_map in projected:
            tokens.append(split_into_windows(patch_map, grid)[places])
            image_mask = layout.mask(patch_map.shape[-1])[:, None]
            inside = split_into_windows(image_mask, grid)[cells, :, 0]
            inside = inside | ~inside.any(1, keepdim=True)
            masks.append(None if inside.all() else inside.to(context.device))
        return VisionWindows(tuple(tokens), tuple(masks), context, places // (grid * grid))

    def _run_group(self, index: int, windows: VisionWindows, layout: ImageLayout) -> Tensor:
        """The queries `[N, D]` of group `index`, behind its layers, at the covered cells."""
        queries = self.vision_query[index : index + 1]
        for layer in self.vision_sampler[index]:
            queries = layer(queries, windows, self.attention_path)
        side = self.group_grids[index]
        if side == self.grid:
            return queries
        patch_map = queries.unflatten(0, (-1, side, side)).movedim(-1, 1)
        size = (self.grid, self.grid)
        resized = F.interpolate(patch_map.float(), size=size, mode="bilinear", align_corners=False)
        return self.covered(resized.to(queries.dtype), layout)

    def _refuse_uneven_groups(self) -> None:
        for side in {*self.group_grids}:
            is_even = all(each % side == 0 for each in self.encoder_grids)
            self._require(is_even, f"encoder grids that are multiples of the group's {side}")


def _check_options(width: int, num_heads: int, depth: int, context: str, path: str) -> None:
    if width % num_heads:
        raise UserError(
            f"the aggregator's width of {width} is not a multiple of its {num_heads} heads; change one of them"
        )
    if context not in ("first", "all") or path not in ("fast", "plain"):
        raise UserError(
            f"context is 'first' or 'all' and path 'fast' or 'plain', not {context!r} and {path!r}"
        )
    if depth < 1:
        raise UserError(f"the aggregator needs a depth of 1 or more, not {depth}")
