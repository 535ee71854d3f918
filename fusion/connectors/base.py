"""The interface of all connectors: a connector turns the feature maps of several encoders into the
tokens that a language model reads.

Every connector is made by `Connector(encoder_widths, encoder_grids, hidden_size, grid, **options)`
and is called in the same way. Connectors that give the same number of tokens can replace each
other without any other change. A new connector is a subclass in a module of its own and an entry
in `fusion.connectors.build.CONNECTORS`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fusion.connectors.geometry import Box, ImageLayout, nearest_grid
from fusion.connectors.windows import EncodedImage, VisionWindows
from vision_core.errors import UserError


def mlp(width: int, hidden: int, output: int) -> nn.Sequential:
    """Linear, GELU, Linear."""
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, output))


def num_image_tokens(box: Box, tokens_per_cell: int, newline: bool) -> int:
    """The number of tokens of an image that covers `box`, with one newline behind every row."""
    return box.rows * (box.columns * tokens_per_cell + int(newline))


class Connector(nn.Module):
    """Base class: feature maps of several encoders in, the tokens of each image out.

    Args:
        encoder_widths: channels of each encoder's map.
        encoder_grids: side of each encoder's map, a multiple of `grid`.
        hidden_size: D_h, the width of the language model's embeddings.
        grid: side of the grid of tokens for a square image.
        newline: add a learned token behind every row of tokens.

    Attributes:
        tokens_per_cell: tokens at one place of the grid.
        fixed_tokens: tokens of any image, for a connector whose tokens have no place in the image;
            otherwise 0.

    Raises:
        UserError: the connector cannot take this number of encoders, or one of their grids.
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
        self.encoder_widths = tuple(encoder_widths)
        self.encoder_grids = tuple(encoder_grids)
        self.hidden_size = hidden_size
        self.grid = grid
        self._refuse_uneven_grids()
        self.image_newline = None
        if newline and not self.fixed_tokens:
            self.image_newline = nn.Parameter(torch.randn(hidden_size) / hidden_size**0.5)

    def aggregate(self, maps: Sequence[Tensor], layout: ImageLayout) -> tuple[Tensor, VisionWindows | None]:
        """Turn the maps into the tokens `[N * tokens_per_cell, D_h]` of the N covered cells, or
        `[B * fixed_tokens, D_h]`; also return the windows that the tokens come from, if any."""
        raise NotImplementedError

    def encode(self, maps: Sequence[Tensor], layout: ImageLayout) -> list[EncodedImage]:
        """Run `forward` and split its result into images."""
        tokens, windows = self(maps, layout)
        boxes = layout.boxes(self.grid)
        image_tokens = tokens.split([self._num_tokens(box) for box in boxes])
        image_windows: Sequence[VisionWindows | None] = [None] * len(boxes)
        if windows is not None:
            image_windows = windows.split([box.num_cells for box in boxes])
        images = []
        for box, own_tokens, own_windows in zip(boxes, image_tokens, image_windows, strict=True):
            cells = self._cell_mask(len(own_tokens), box).to(tokens.device)
            images.append(EncodedImage(own_tokens, cells, own_windows))
        return images

    def forward(self, maps: Sequence[Tensor], layout: ImageLayout) -> tuple[Tensor, VisionWindows | None]:
        """Return the tokens of all images, `[sum of n, D_h]`, newlines among them, and the windows
        that their cells looked at.

        maps: `[B, encoder_widths[i], encoder_grids[i], encoder_grids[i]]` of each encoder i.
        layout: where the B images lie in the maps. The number of returned tensors does not depend
        on B: sharded training counts them, and stops where processes differ.
        """
        self._assert_shapes(maps)
        tokens, windows = self.aggregate(maps, layout)
        if self.image_newline is None:
            return tokens, windows
        boxes = layout.boxes(self.grid)
        image_tokens = tokens.split([box.num_cells * self.tokens_per_cell for box in boxes])
        with_newlines = []
        for own_tokens, box in zip(image_tokens, boxes, strict=True):
            rows = own_tokens.unflatten(0, (box.rows, -1))
            rows = torch.cat([rows, self.image_newline.expand(box.rows, 1, -1)], dim=1)
            with_newlines.append(rows.flatten(0, 1))
        return torch.cat(with_newlines), windows

    def covered(self, patch_map: Tensor, layout: ImageLayout) -> Tensor:
        """Return the covered cells `[N, C]` of a map `[B, C, grid, grid]`."""
        cells = layout.cells(self.grid, patch_map.device)
        return patch_map.permute(0, 2, 3, 1).flatten(0, 2)[cells]

    def _num_tokens(self, box: Box) -> int:
        if self.fixed_tokens:
            return self.fixed_tokens
        return num_image_tokens(box, self.tokens_per_cell, self.image_newline is not None)

    def _cell_mask(self, num_tokens: int, box: Box) -> Tensor:
        """`[n]` bool, False at the newlines among an image's n tokens."""
        mask = torch.ones(num_tokens, dtype=torch.bool)
        if self.image_newline is not None:
            mask.view(box.rows, -1)[:, -1] = False
        return mask

    def _assert_shapes(self, maps: Sequence[Tensor]) -> None:
        shapes = [tuple(each.shape) for each in maps]
        sides = zip(self.encoder_widths, self.encoder_grids, strict=True)
        expected = [(width, side, side) for width, side in sides]
        assert [shape[1:] for shape in shapes] == expected, f"{shapes} for {expected}"

    def _refuse_uneven_grids(self) -> None:
        for index, side in enumerate(self.encoder_grids):
            if side % self.grid:
                raise UserError(
                    f"encoder {index} hands on a grid of {side} x {side}, which the connector's "
                    f"{self.grid} x {self.grid} does not divide; hand on {nearest_grid(side, self.grid)} or "
                    f"choose a grid that divides {side}"
                )

    def _require(self, is_met: bool, need: str) -> None:
        if not is_met:
            raise UserError(
                f"the connector {type(self).__name__} needs {need}; "
                f"got widths {self.encoder_widths} and grids {self.encoder_grids}"
            )

    def _require_own_grid(self) -> None:
        self._require(
            set(self.encoder_grids) == {self.grid},
            f"encoder grids of {self.grid}, its own (write ?grid={self.grid} behind an encoder's name)",
        )
