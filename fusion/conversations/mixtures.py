"""Conversations for a trainer: a mixture of sources as a data set, and batches of text-only,
one-image and several-image samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from fusion.conversations.conversation import Conversation
from fusion.conversations.packing import pack_rows
from fusion.conversations.sources import ConversationSource
from fusion.conversations.tokens import tokenise
from fusion.labels import LABEL_IGNORED
from fusion.map_cache import MapCache
from fusion.processing_fusion import FusionProcessor
from vision_core.errors import UserError
from vision_core.randomness import numpy_generator

# what stands in a batch without images for the image that its vision model must see; it covers one
# row of cells
BLANK = torch.full((3, 8, 256), 127, dtype=torch.uint8)


class ConversationDataset(Dataset):
    """Sources, mixed. A source of weight w has w times its rows in every epoch, the same ones:
    whole rounds of all rows, and a draw of some for the rest.

    An item is as `training_item` makes it. Raises BadRow, with file and row, for a row that cannot
    be trained on.
    """

    def __init__(
        self,
        sources: Sequence[ConversationSource],
        processor: FusionProcessor,
        max_length: int,
        seed: int = 0,
        cache: MapCache | None = None,
    ) -> None:
        self.sources, self.processor, self.max_length, self.cache = (
            list(sources),
            processor,
            max_length,
            cache,
        )
        places = [
            (number, row)
            for number, source in enumerate(self.sources)
            for row in rows_of(source, seed, number)
        ]
        self.places = np.array(places, dtype=np.int64).reshape(-1, 2)

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> dict[str, Any]:
        number, row = self.places[index]
        return training_item(self.sources[number][int(row)], self.processor, self.max_length, self.cache)

    def rough_lengths(self) -> list[int]:
        """Of every sample, in characters and image tokens: enough to put like to like, and no image
        is opened for it."""
        side = max(transform["size"][0] for transform in self.processor.image_processor.transforms)
        of_image = 4 * self.processor.image_processor.num_tokens(
            side, side
        )  # some four characters to a token
        lengths = {}
        for number, row in self.places.tolist():
            if (number, row) not in lengths:
                characters, images = self.sources[number].size_of(row)
                lengths[number, row] = characters + images * of_image
        return [lengths[number, row] for number, row in self.places.tolist()]


def training_item(
    conversation: Conversation, processor: FusionProcessor, max_length: int, cache: MapCache | None = None
) -> dict[str, Any]:
    """A sample: `input_ids`, `labels` (lists), `pixel_values` `[images, P]` and `image_sizes`
    `[images, 2]`; with a `cache` it has `vision_maps` in place of the pixels. Raises BadRow."""
    tokens = tokenise(conversation, processor, max_length)
    item: dict[str, Any] = {"input_ids": tokens.input_ids, "labels": tokens.labels}
    if conversation.images:
        item |= image_inputs(conversation.images, processor, cache)
    return item


def image_inputs(
    images: Sequence[Tensor], processor: FusionProcessor, cache: MapCache | None
) -> dict[str, Any]:
    """What a model needs of images `[3, H, W]`: pixels of every encoder, or from the cache their
    maps."""
    if cache is None:
        return dict(processor.image_processor(list(images)))
    maps = [torch.stack(of_encoder) for of_encoder in zip(*map(cache.load, images), strict=True)]
    return {"vision_maps": maps, "image_sizes": torch.tensor([image.shape[-2:] for image in images])}


def rows_of(source: ConversationSource, seed: int, number: int) -> list[int]:
    """Rows of a source in every epoch, the same ones, by its weight."""
    wanted = round(len(source) * source.weight)
    if wanted < 1:
        raise UserError(
            f"{source.name}: {len(source)} rows at weight {source.weight} are none; raise the weight"
        )
    rounds, rest = divmod(wanted, len(source))
    drawn = numpy_generator("mixture", seed, number).permutation(len(source))[:rest]
    return [*range(len(source))] * rounds + sorted(int(row) for row in drawn)


class ConversationCollator:
    """Samples to a batch: one to a row, padded on the right, or `packed`, several to a row, each of
    which sees itself alone.

    In a packed batch the positions start again with every sample, there is no attention mask, and
    transformers' models tell the samples of a row apart by that; what is left of a row is one more
    sample, of padding.

    Every batch shows the vision model at least one image. Where no sample has any, a blank one
    stands in the padding, where nothing looks at it and nothing is learnt from it: sharded training
    needs every process to run every part of the model, and every parameter to get a gradient, if
    one of zero.
    """

    def __init__(
        self, processor: FusionProcessor, packed: bool = False, cache: MapCache | None = None
    ) -> None:
        self.processor, self.packed = processor, packed
        self.blank = image_inputs([BLANK], processor, cache)
        self.blank_tokens = processor.image_processor.num_tokens(*BLANK.shape[-2:])

    def __call__(self, items: Sequence[dict[str, Any]]) -> dict[str, Any]:
        lengths = [len(item["input_ids"]) for item in items]
        rows = pack_rows(lengths, max(lengths)) if self.packed else [[sample] for sample in range(len(items))]
        items = [items[sample] for row in rows for sample in row]
        shown = [item for item in items if "image_sizes" in item]
        tokens = self._rows(
            [[lengths[sample] for sample in row] for row in rows],
            items,
            ghost=0 if shown else self.blank_tokens,
        )
        shown = shown or [self.blank]
        images = {"image_sizes": torch.cat([item["image_sizes"] for item in shown])}
        if "vision_maps" in self.blank:
            of_encoders = zip(*(item["vision_maps"] for item in shown), strict=True)
            images["vision_maps"] = [torch.cat(maps) for maps in of_encoders]
        else:
            images["pixel_values"] = torch.cat([item["pixel_values"] for item in shown])
        return tokens | images

    def _rows(
        self, lengths: list[list[int]], items: Sequence[dict[str, Any]], ghost: int
    ) -> dict[str, Tensor]:
        """Token tensors `[rows, width]` of the samples in order; the first row ends in `ghost`
        places of an image."""
        width = max(sum(row) for row in lengths) + ghost
        ids = torch.full((len(lengths), width), self.processor.tokenizer.pad_token_id)
        labels, positions, mask = (
            torch.full_like(ids, LABEL_IGNORED),
            torch.zeros_like(ids),
            torch.zeros_like(ids),
        )
        remaining = iter(items)
        for row, samples in enumerate(lengths):
            start = 0
            for length in samples:
                item, here = next(remaining), slice(start, start + length)
                ids[row, here], labels[row, here] = (
                    torch.tensor(item["input_ids"]),
                    torch.tensor(item["labels"]),
                )
                positions[row, here], mask[row, here] = torch.arange(length), 1
                start += length
            positions[row, start:] = torch.arange(width - start)
        if ghost:
            ids[0, width - ghost :] = self.processor.image_token_id
        return {"input_ids": ids, "labels": labels} | (
            {"position_ids": positions} if self.packed else {"attention_mask": mask}
        )
