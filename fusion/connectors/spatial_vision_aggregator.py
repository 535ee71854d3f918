"""The Spatial Vision Aggregator of Cambrian-1 (Tong et al. 2024, section 3.2; as released): queries
on a grid, each of which looks at the same place of the image in every encoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fusion.connectors.base import Connector, mlp
from fusion.connectors.cross_attention import Path, VisionCrossAttentionLayer
from fusion.connectors.geometry import ImageLayout
from fusion.connectors.windows import VisionWindows
from vision_core.errors import UserError


def cut_windows(patch_map: Tensor, grid: int) -> Tensor:
    """`[B, C, r * grid, r * grid]` as `[B * grid * grid, r * r, C]`: for every query, row by row,
    the tokens that lie under it, row by row.

    windows[b * grid^2 + i * grid + j, u * r + v] = patch_map[b, :, i * r + u, j * r + v]
    """
    side = patch_map.shape[-1] // grid
    cut = patch_map.unflatten(3, (grid, side)).unflatten(2, (grid, side))  # [B, C, i, u, j, v]
    return cut.permute(0, 2, 4, 3, 5, 1).flatten(0, 2).flatten(1, 2)


class SpatialVisionAggregator(Connector):
    """Maps of several encoders to one token per cell of a grid, by windowed cross-attention; the
    defaults are the released ones.

    A map is projected (Linear, GELU, Linear, LayerNorm). A query, which starts as one learned
    vector for all places, looks `depth` times at the windows of all encoders under its cell. The
    outputs of the groups lie side by side in the channels of the projector to H.

    Args:
        encoder_widths, encoder_grids, hidden_size, grid, newline: see `Connector`.
        width: of projected tokens and queries. num_heads: of the attention. depth: layers in every
            group.
        group_grids: the grid of each group of queries; one that differs from `grid` is resized to
            it (bilinear). Default: one group of `grid`.
        context: the global context is the mean of the projected tokens, padding included, of the
            `first` encoder (as released), or of `all`.
        zero_init_output, shared_norms: see `VisionCrossAttentionLayer`.
        path: `fast`, or `plain`, the formula as it is written; they give the same.

    Attributes:
        gradient_checkpointing of its layers: see there.
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
        path: Path = "fast",
    ) -> None:
        super().__init__(encoder_widths, encoder_grids, hidden_size, grid, newline=newline)
        if width % num_heads:
            raise UserError(
                f"the aggregator's width of {width} is no multiple of its {num_heads} heads; change one of them"
            )
        if context not in ("first", "all") or path not in ("fast", "plain"):
            raise UserError(
                f"context is 'first' or 'all' and path 'fast' or 'plain', not {context!r} and {path!r}"
            )
        if depth < 1:
            raise UserError(f"the aggregator needs a depth of 1 or more, not {depth}")
        self.width, self.num_heads, self.context, self.shared_norms, self.path = (
            width,
            num_heads,
            context,
            shared_norms,
            path,
        )
        self.group_grids = tuple(group_grids or (grid,))
        for side in {*self.group_grids}:
            self._needs(
                all(each % side == 0 for each in encoder_grids),
                f"encoder grids that are multiples of the group's {side}",
            )
        self.mm_projector_aux = nn.ModuleList(
            nn.Sequential(*mlp(each, width, width), nn.LayerNorm(width)) for each in encoder_widths
        )
        self.vision_query = nn.Parameter(torch.randn(len(self.group_grids), width) / width**0.5)
        self.vision_sampler = nn.ModuleList(
            nn.ModuleList(
                VisionCrossAttentionLayer(
                    width,
                    width,
                    num_heads,
                    self.window_sizes(side),
                    zero_init_output=zero_init_output,
                    shared_norms=shared_norms,
                )
                for _ in range(depth)
            )
            for side in self.group_grids
        )
        self.mm_projector = mlp(width * len(self.group_grids), hidden_size, hidden_size)

    def window_sizes(self, grid: int) -> tuple[int, ...]:
        """Tokens under one cell of `grid`, in each encoder."""
        return tuple((side // grid) ** 2 for side in self.encoder_grids)

    def aggregate(self, maps: Sequence[Tensor], layout: ImageLayout) -> tuple[Tensor, VisionWindows]:
        projected = [
            projector(patch_map.movedim(1, -1)).movedim(-1, 1)
            for projector, patch_map in zip(self.mm_projector_aux, maps, strict=True)
        ]
        means = [each.mean((2, 3)) for each in (projected[:1] if self.context == "first" else projected)]
        context = torch.stack(means).mean(0)
        covered = self._windows(projected, context, layout, self.grid)
        groups = [
            self._group(
                index,
                covered
                if side == self.grid
                else self._windows(projected, context, layout, side, everywhere=True),
                layout,
            )
            for index, side in enumerate(self.group_grids)
        ]
        return self.mm_projector(torch.cat(groups, dim=-1)), covered

    def _windows(
        self,
        projected: list[Tensor],
        context: Tensor,
        layout: ImageLayout,
        grid: int,
        everywhere: bool = False,
    ) -> VisionWindows:
        """The windows of the covered cells of `grid`, or of all; a window that lies in the padding
        whole has no mask."""
        cells = torch.arange(len(context) * grid * grid) if everywhere else layout.cells(grid)
        places = cells.to(context.device)
        tokens, masks = [], []
        for patch_map in projected:
            tokens.append(cut_windows(patch_map, grid)[places])
            inside = cut_windows(layout.mask(patch_map.shape[-1])[:, None], grid)[cells, :, 0]
            inside = inside | ~inside.any(1, keepdim=True)
            masks.append(None if inside.all() else inside.to(context.device))
        return VisionWindows(tuple(tokens), tuple(masks), context, places // (grid * grid))

    def _group(self, index: int, windows: VisionWindows, layout: ImageLayout) -> Tensor:
        queries = self.vision_query[index : index + 1]
        for layer in self.vision_sampler[index]:
            queries = layer(queries, windows, self.path)
        side = self.group_grids[index]
        if side == self.grid:
            return queries
        patch_map = queries.unflatten(0, (-1, side, side)).movedim(-1, 1)
        resized = F.interpolate(
            patch_map.float(), size=(self.grid, self.grid), mode="bilinear", align_corners=False
        )
        return self.covered(resized.to(queries.dtype), layout)
