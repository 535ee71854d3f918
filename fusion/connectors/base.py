"""What turns the maps of several encoders into the tokens that a language model reads: the
interface, and the published simple ways.

All connectors are made alike, `Connector(encoder_widths, encoder_grids, hidden_size, grid,
**options)`, and called alike. Where their numbers of tokens agree they can be exchanged for each
other without any other change.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fusion.connectors.geometry import Box, ImageLayout
from fusion.connectors.windows import EncodedImage, VisionWindows
from vision_core.errors import UserError


def mlp(width: int, hidden: int, output: int) -> nn.Sequential:
    """Linear, GELU, Linear."""
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, output))


def num_image_tokens(box: Box, tokens_per_cell: int, newline: bool) -> int:
    """Tokens of an image that covers `box`, with one newline behind every row."""
    return box.rows * (box.columns * tokens_per_cell + int(newline))


class Connector(nn.Module):
    """Maps of several encoders to the tokens of each image.

    Args:
        encoder_widths: channels of each encoder's map.
        encoder_grids: sides of the maps, each a multiple of `grid`.
        hidden_size: H, of the language model's embeddings.
        grid: side of the grid of tokens for a square image.
        newline: a learned token behind every row.

    Attributes:
        tokens_per_cell: tokens at one place of the grid.
        fixed_tokens: tokens of any image, where they have no place in it; else 0.

    Raises:
        UserError: a number of encoders, or a grid, that the connector cannot take.
    """

    tokens_per_cell = 1
    fixed_tokens = 0

    def __init__(
        self,
        encoder_widths: Sequence[int],
        encoder_grids: Sequence[int],
        hidden_size: int,
        grid: int,
        *,
        newline: bool = True,
    ) -> None:
        super().__init__()
        for index, side in enumerate(encoder_grids):
            if side % grid:
                raise UserError(
                    f"encoder {index} hands on a grid of {side} x {side}, which the connector's {grid} x {grid} does not divide; "
                    f"hand on {max(round(side / grid), 1) * grid} or choose a grid that divides {side}"
                )
        self.encoder_widths, self.encoder_grids, self.hidden_size, self.grid = (
            tuple(encoder_widths),
            tuple(encoder_grids),
            hidden_size,
            grid,
        )
        self.image_newline = (
            nn.Parameter(torch.randn(hidden_size) / hidden_size**0.5)
            if newline and not self.fixed_tokens
            else None
        )

    def aggregate(self, maps: Sequence[Tensor], layout: ImageLayout) -> tuple[Tensor, VisionWindows | None]:
        """Tokens `[N * tokens_per_cell, H]` of the N covered cells (or `[B * fixed_tokens, H]`),
        and the windows they came from, where there are any."""
        raise NotImplementedError

    def encode(self, maps: Sequence[Tensor], layout: ImageLayout) -> list[EncodedImage]:
        """`forward`, cut into images."""
        tokens, windows = self(maps, layout)
        boxes = layout.boxes(self.grid)
        newline = self.image_newline is not None
        lengths = [self.fixed_tokens or num_image_tokens(box, self.tokens_per_cell, newline) for box in boxes]
        parts = (
            [None] * len(boxes)
            if windows is None
            else windows.split([box.rows * box.columns for box in boxes])
        )
        cells = [
            self._cells(length, box).to(tokens.device) for length, box in zip(lengths, boxes, strict=True)
        ]
        return [EncodedImage(*image) for image in zip(tokens.split(lengths), cells, parts, strict=True)]

    def forward(self, maps: Sequence[Tensor], layout: ImageLayout) -> tuple[Tensor, VisionWindows | None]:
        """Tokens of all images, `[sum of n, H]`, newlines among them, and the windows that their
        cells looked at.

        maps: `[B, encoder_widths[i], encoder_grids[i], encoder_grids[i]]` of each encoder; layout:
        where the B images lie in them. The number of tensors that come back does not depend on B:
        sharded training counts them, and stops where processes differ.
        """
        expected = [
            (width, side, side) for width, side in zip(self.encoder_widths, self.encoder_grids, strict=True)
        ]
        assert [tuple(each.shape[1:]) for each in maps] == expected, (
            f"{[tuple(each.shape) for each in maps]} for {expected}"
        )
        tokens, windows = self.aggregate(maps, layout)
        if self.image_newline is None:
            return tokens, windows
        boxes = layout.boxes(self.grid)
        of_images = tokens.split([box.rows * box.columns * self.tokens_per_cell for box in boxes])
        with_newlines = []
        for image, box in zip(of_images, boxes, strict=True):
            rows = torch.cat(
                [image.unflatten(0, (box.rows, -1)), self.image_newline.expand(box.rows, 1, -1)], dim=1
            )
            with_newlines.append(rows.flatten(0, 1))
        return torch.cat(with_newlines), windows

    def _cells(self, length: int, box: Box) -> Tensor:
        """Which of an image's tokens are no newlines, `[n]` bool."""
        cells = torch.ones(length, dtype=torch.bool)
        if self.image_newline is not None:
            cells.view(box.rows, -1)[:, -1] = False
        return cells

    def covered(self, patch_map: Tensor, layout: ImageLayout) -> Tensor:
        """The covered cells of a map `[B, C, grid, grid]`, `[N, C]`."""
        return patch_map.permute(0, 2, 3, 1).flatten(0, 2)[layout.cells(self.grid, patch_map.device)]

    def _needs(self, met: bool, what: str) -> None:
        if not met:
            raise UserError(
                f"the connector {type(self).__name__} needs {what}; got widths {self.encoder_widths} and grids {self.encoder_grids}"
            )

    def _needs_own_grid(self) -> None:
        self._needs(
            set(self.encoder_grids) == {self.grid},
            f"encoder grids of {self.grid}, its own (write ?grid={self.grid} behind an encoder's name)",
        )


class MlpConnector(Connector):
    """LLaVA-1.5's `mlp2x_gelu`: Linear, GELU, Linear on one encoder."""

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
        self._needs(len(encoder_widths) == 1, "one encoder")
        self._needs_own_grid()
        self.mm_projector = mlp(encoder_widths[0], hidden_size, hidden_size)

    def aggregate(self, maps: Sequence[Tensor], layout: ImageLayout) -> tuple[Tensor, None]:
        return self.mm_projector(self.covered(maps[0], layout)), None


class LinearConnector(Connector):
    """PaliGemma's: one Linear on one encoder."""

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
        self._needs(len(encoder_widths) == 1, "one encoder")
        self._needs_own_grid()
        self.mm_projector = nn.Linear(encoder_widths[0], hidden_size)

    def aggregate(self, maps: Sequence[Tensor], layout: ImageLayout) -> tuple[Tensor, None]:
        return self.mm_projector(self.covered(maps[0], layout)), None


class ChannelConcat(Connector):
    """All encoders' channels side by side, through an MLP.

    num_layers: 2 as in Eagle (sum of widths -> H -> H), or 3 as in Prismatic's fused MLP (sum -> 4
    * sum -> H -> H).
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
        self._needs_own_grid()
        self._needs(num_layers in (2, 3), f"num_layers of 2 or 3, not {num_layers}")
        total = sum(encoder_widths)
        first = [nn.Linear(total, 4 * total), nn.GELU()] if num_layers == 3 else []
        self.mm_projector = nn.Sequential(
            *first, *mlp(4 * total if first else total, hidden_size, hidden_size)
        )

    def aggregate(self, maps: Sequence[Tensor], layout: ImageLayout) -> tuple[Tensor, None]:
        return self.mm_projector(self.covered(torch.cat(list(maps), dim=1), layout)), None


class InterleavedFeatures(Connector):
    """MMVP's interleaved mixture of features: an MLP for each encoder, and at every place one token
    of each encoder after the other."""

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
        self._needs_own_grid()
        self.tokens_per_cell = len(encoder_widths)
        self.mm_projectors = nn.ModuleList(mlp(width, hidden_size, hidden_size) for width in encoder_widths)

    def aggregate(self, maps: Sequence[Tensor], layout: ImageLayout) -> tuple[Tensor, None]:
        each = [
            projector(self.covered(patch_map, layout))
            for projector, patch_map in zip(self.mm_projectors, maps, strict=True)
        ]
        return torch.stack(each, dim=1).flatten(0, 1), None


class AdditiveFeatures(Connector):
    """MMVP's additive mixture of features: a weighted sum of encoders of one width, through one
    MLP.

    shares: the weights of the sum, one per encoder; default equal.
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
        self._needs_own_grid()
        self._needs(len(set(encoder_widths)) == 1, "encoders of one width, as it adds their features")
        self.shares = [1 / len(encoder_widths)] * len(encoder_widths) if shares is None else list(shares)
        self._needs(
            len(self.shares) == len(encoder_widths), f"one share for each encoder, not {len(self.shares)}"
        )
        self.mm_projector = mlp(encoder_widths[0], hidden_size, hidden_size)

    def aggregate(self, maps: Sequence[Tensor], layout: ImageLayout) -> tuple[Tensor, None]:
        mixed = sum(share * patch_map for share, patch_map in zip(self.shares, maps, strict=True))
        return self.mm_projector(self.covered(mixed, layout)), None


class PixelShuffle(Connector):
    """Neighbouring cells side by side in the channels, then one Linear without bias (nanoVLM):
    grids of r times `grid` become r * r fewer tokens."""

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
        widths = (
            width * (side // grid) ** 2 for width, side in zip(encoder_widths, encoder_grids, strict=True)
        )
        self.mm_projector = nn.Linear(sum(widths), hidden_size, bias=False)

    def aggregate(self, maps: Sequence[Tensor], layout: ImageLayout) -> tuple[Tensor, None]:
        shuffled = [
            F.pixel_unshuffle(each, side // self.grid)
            for each, side in zip(maps, self.encoder_grids, strict=True)
        ]
        return self.mm_projector(self.covered(torch.cat(shuffled, dim=1), layout)), None
