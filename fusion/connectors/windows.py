"""What every query may look at, and an image after the connector."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass
class VisionWindows:
    """The keys and values of N queries, one query per covered cell of a grid, over all images of a
    batch.

    tokens: of each encoder, `[N, r * r, C]`: the window of its grid that lies under the query.
    masks: of each encoder, `[N, r * r]` bool, False for padding, or None where nothing is; no row
    is all False. context: `[B, C]`, one vector per image. image: `[N]`, the image of each query.
    shares: where a list is given, every layer that reads these windows appends its attention per
    encoder, `[N, heads, encoders]`.
    """

    tokens: tuple[Tensor, ...]
    masks: tuple[Tensor | None, ...]
    context: Tensor
    image: Tensor
    shares: list[Tensor] | None = None
    _variances: tuple[Tensor, ...] | None = field(default=None, init=False, repr=False)

    def variances(self) -> tuple[Tensor, ...]:
        """Of each token over its channels, `[N, r * r]` float32 for each encoder: computed once for
        all layers that normalise the tokens."""
        if self._variances is None:
            self._variances = tuple(tokens.float().var(-1, correction=0) for tokens in self.tokens)
        return self._variances

    def split(self, counts: Sequence[int]) -> list[VisionWindows]:
        """One for every image; `counts`: the queries of each."""
        tokens = [each.split(list(counts)) for each in self.tokens]
        masks = [[None] * len(counts) if each is None else each.split(list(counts)) for each in self.masks]
        return [
            VisionWindows(
                tuple(each[index] for each in tokens),
                tuple(each[index] for each in masks),
                self.context[index : index + 1],
                self.image.new_zeros(count),
                self.shares,
            )
            for index, count in enumerate(counts)
        ]

    @staticmethod
    def join(parts: Sequence[VisionWindows]) -> VisionWindows:
        """The inverse of `split`."""
        if len(parts) == 1:
            return parts[0]
        tokens = tuple(torch.cat(each) for each in zip(*(part.tokens for part in parts), strict=True))
        counts = [len(part.image) for part in parts]
        return VisionWindows(
            tokens,
            tuple(_join_masks(each, counts) for each in zip(*(part.masks for part in parts), strict=True)),
            torch.cat([part.context for part in parts]),
            torch.repeat_interleave(torch.arange(len(parts)), torch.tensor(counts)).to(tokens[0].device),
            parts[0].shares,
        )

    def of_queries(self, chosen: Tensor) -> VisionWindows:
        """The windows of some queries; chosen: their numbers `[n]`."""
        tokens = tuple(each[chosen] for each in self.tokens)
        masks = tuple(None if mask is None else mask[chosen] for mask in self.masks)
        return VisionWindows(tokens, masks, self.context, self.image[chosen], self.shares)

    def to(self, device: torch.device) -> VisionWindows:
        """The same on another device, where a language model's layers lie on several."""
        if self.context.device == device:
            return self
        masks = tuple(None if mask is None else mask.to(device) for mask in self.masks)
        return VisionWindows(
            tuple(each.to(device) for each in self.tokens),
            masks,
            self.context.to(device),
            self.image.to(device),
            self.shares,
        )


def _join_masks(masks: Sequence[Tensor | None], counts: Sequence[int]) -> Tensor | None:
    """None where no image has padding in its windows; None of one image among others that have is
    all True."""
    known = next((mask for mask in masks if mask is not None), None)
    if known is None:
        return None
    return torch.cat(
        [
            known.new_ones(count, known.shape[1]) if mask is None else mask
            for mask, count in zip(masks, counts, strict=True)
        ]
    )


@dataclass(frozen=True)
class EncodedImage:
    """An image as a language model reads it.

    tokens: `[n, H]`, row by row, a newline token behind every row where the connector has one.
    cells: `[n]` bool, False at newlines. windows: what the cells looked at, for layers in the
    language model that look again; None where the connector has no windows.

    Images can be joined and cut by their tokens. `generate` with `prefill_chunk_size` does so by
    `reshape`, `torch.cat` and an index, as with the tensors `[n, H]` of models that have nothing
    but tokens (transformers' `_slice_mm_encoder_output`).
    """

    tokens: Tensor
    cells: Tensor
    windows: VisionWindows | None = None

    def __len__(self) -> int:
        """The number of its tokens."""
        return len(self.tokens)

    @property
    def shape(self) -> torch.Size:
        """That of its tokens, `[n, H]`."""
        return self.tokens.shape

    def reshape(self, *shape: int) -> EncodedImage:
        """Itself: a row for each token is the one shape that it has."""
        assert shape == (-1, self.shape[-1]), f"an image of tokens {tuple(self.shape)} has no shape {shape}"
        return self

    def __getitem__(self, rows: Tensor) -> EncodedImage:
        """Some of its tokens, with the windows of those that are cells; rows: `[k]`, their
        numbers."""
        cells = self.cells[rows.to(self.cells.device)]
        windows = None
        if self.windows is not None:
            numbers = self.cells.cumsum(0) - 1  # of each token that is a cell, which cell
            windows = self.windows.of_queries(
                numbers[rows.to(numbers.device)][cells].to(self.windows.image.device)
            )
        return EncodedImage(self.tokens[rows.to(self.tokens.device)], cells, windows)

    @staticmethod
    def join(images: Sequence[EncodedImage]) -> EncodedImage:
        """The tokens of several images, one image's behind the other's."""
        windows = (
            None if images[0].windows is None else VisionWindows.join([image.windows for image in images])
        )
        tokens = torch.cat([image.tokens for image in images])
        cells = torch.cat([image.cells for image in images])
        return EncodedImage(tokens, cells, windows)

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """`torch.cat` of images is `join`."""
        return cls.join(args[0]) if function is torch.cat and not kwargs else NotImplemented
