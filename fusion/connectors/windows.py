"""What each query of the aggregator may look at, and an image as it leaves a connector."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass
class VisionWindows:
    """The keys and values of N queries: one query for each covered cell of a grid, over all images
    of a batch.

    tokens: for each encoder, `[N, r * r, D]`: the window of its grid that lies under the query.
    masks: for each encoder, `[N, r * r]` bool, False for padding and never all False in a row, or
    None where no window has padding.
    context: `[B, D]`, one vector for each image.
    image_index: `[N]`, the number of each query's image in the batch.
    """

    tokens: tuple[Tensor, ...]
    masks: tuple[Tensor | None, ...]
    context: Tensor
    image_index: Tensor
    _variances: tuple[Tensor, ...] | None = field(default=None, init=False, repr=False)

    def variances(self) -> tuple[Tensor, ...]:
        """The variance of each token over its channels, `[N, r * r]` float32 for each encoder.

        It is computed once for all layers that normalise the tokens.
        """
        if self._variances is None:
            self._variances = tuple(tokens.float().var(-1, correction=0) for tokens in self.tokens)
        return self._variances

    def split(self, counts: Sequence[int]) -> list[VisionWindows]:
        """Split the windows by image; counts: the number of queries of each image."""
        counts = list(counts)
        tokens = [each.split(counts) for each in self.tokens]
        masks = [[None] * len(counts) if each is None else each.split(counts) for each in self.masks]
        parts = []
        for index, count in enumerate(counts):
            part = VisionWindows(
                tokens=tuple(each[index] for each in tokens),
                masks=tuple(each[index] for each in masks),
                context=self.context[index : index + 1],
                image_index=self.image_index.new_zeros(count),
            )
            parts.append(part)
        return parts

    @staticmethod
    def join(parts: Sequence[VisionWindows]) -> VisionWindows:
        """Undo `split`."""
        if len(parts) == 1:
            return parts[0]
        counts = [len(part.image_index) for part in parts]
        tokens_of_encoders = zip(*(part.tokens for part in parts), strict=True)
        masks_of_encoders = zip(*(part.masks for part in parts), strict=True)
        tokens = tuple(torch.cat(each) for each in tokens_of_encoders)
        image_index = torch.repeat_interleave(torch.arange(len(parts)), torch.tensor(counts))
        return VisionWindows(
            tokens=tokens,
            masks=tuple(_join_masks(each, counts) for each in masks_of_encoders),
            context=torch.cat([part.context for part in parts]),
            image_index=image_index.to(tokens[0].device),
        )

    def of_queries(self, chosen: Tensor) -> VisionWindows:
        """The windows of some queries; chosen: their numbers `[n]`."""
        tokens = tuple(each[chosen] for each in self.tokens)
        masks = tuple(None if mask is None else mask[chosen] for mask in self.masks)
        return VisionWindows(tokens, masks, self.context, self.image_index[chosen])

    def to(self, device: torch.device) -> VisionWindows:
        """The windows on another device, for language models whose layers lie on several."""
        if self.context.device == device:
            return self
        tokens = tuple(each.to(device) for each in self.tokens)
        masks = tuple(None if mask is None else mask.to(device) for mask in self.masks)
        return VisionWindows(tokens, masks, self.context.to(device), self.image_index.to(device))


def _join_masks(masks: Sequence[Tensor | None], counts: Sequence[int]) -> Tensor | None:
    """Join the masks of images: None where no image has padding, and all True for an image without
    padding among others that have it."""
    known = next((mask for mask in masks if mask is not None), None)
    if known is None:
        return None
    joined = []
    for mask, count in zip(masks, counts, strict=True):
        joined.append(known.new_ones(count, known.shape[1]) if mask is None else mask)
    return torch.cat(joined)


@dataclass(frozen=True)
class EncodedImage:
    """An image as a language model reads it.

    tokens: `[n, D_h]`, row by row, with a newline token behind every row where the connector has
    one. cells: `[n]` bool, False at newlines. windows: what the cells looked at, for the layers of
    the language model that look again; None where the connector has no windows.

    Images can be joined and cut by their tokens. `generate` with `prefill_chunk_size` does so by
    `reshape`, `torch.cat` and an index, as with the tensors `[n, D_h]` of models that have nothing
    but tokens (transformers' `_slice_mm_encoder_output`).
    """

    tokens: Tensor
    cells: Tensor
    windows: VisionWindows | None = None

    def __len__(self) -> int:
        """The number of tokens."""
        return len(self.tokens)

    @property
    def shape(self) -> torch.Size:
        """The shape of the tokens, `[n, D_h]`."""
        return self.tokens.shape

    def reshape(self, *shape: int) -> EncodedImage:
        """Return the image itself: a row for each token is the only shape that it can have."""
        assert shape == (-1, self.shape[-1]), f"an image of tokens {tuple(self.shape)} has no shape {shape}"
        return self

    def __getitem__(self, rows: Tensor) -> EncodedImage:
        """Choose some tokens, with the windows of those that are cells; rows: the numbers `[k]` of
        the tokens."""
        tokens = self.tokens[rows.to(self.tokens.device)]
        cells = self.cells[rows.to(self.cells.device)]
        if self.windows is None:
            return EncodedImage(tokens, cells)
        cell_numbers = self.cells.cumsum(0) - 1  # [n], the number of the cell that a token is
        chosen = cell_numbers[rows.to(cell_numbers.device)][cells]
        windows = self.windows.of_queries(chosen.to(self.windows.image_index.device))
        return EncodedImage(tokens, cells, windows)

    @staticmethod
    def join(images: Sequence[EncodedImage]) -> EncodedImage:
        """Put the tokens of several images one behind the other."""
        tokens = torch.cat([image.tokens for image in images])
        cells = torch.cat([image.cells for image in images])
        if images[0].windows is None:
            return EncodedImage(tokens, cells)
        return EncodedImage(tokens, cells, VisionWindows.join([image.windows for image in images]))

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Make `torch.cat` of images mean `join`."""
        if function is torch.cat and not kwargs:
            return cls.join(args[0])
        return NotImplemented
