"""Makes a training sample of a conversation, and a batch of samples.

A sample is a dict of `input_ids` and `labels` (lists of the same length) and, where the conversation
has images, of their pixels or cached feature maps. Which tokens are labels: fusion/conversations/tokens.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fusion.conversations.conversation import Conversation
from fusion.conversations.packing import pack_rows
from fusion.conversations.tokens import tokenise
from fusion.labels import LABEL_IGNORED
from fusion.map_cache import MapCache
from fusion.processing_fusion import FusionProcessor

# the image in a batch without images, which the vision model must see; it covers one row of cells
BLANK = torch.full((3, 8, 256), 127, dtype=torch.uint8)

Sample = dict[str, Any]


def training_item(
    conversation: Conversation, processor: FusionProcessor, max_length: int, cache: MapCache | None = None
) -> Sample:
    """A sample: `input_ids`, `labels`, and with images what `image_inputs` gives. Raises BadRow."""
    tokens = tokenise(conversation, processor, max_length)
    sample: Sample = {"input_ids": tokens.input_ids, "labels": tokens.labels}
    if conversation.images:
        sample |= image_inputs(conversation.images, processor, cache)
    return sample


def image_inputs(
    images: Sequence[Tensor], processor: FusionProcessor, cache: MapCache | None
) -> dict[str, Any]:
    """What a model needs of images, each `[3, H, W]`.

    Without a cache this is `pixel_values` `[images, P]`, the pixels for every encoder side by side.
    With a cache it is `vision_maps`, for each encoder its feature maps of all images.
    `image_sizes` `[images, 2]` is there in both cases.
    """
    if cache is None:
        return dict(processor.image_processor(list(images)))
    maps_of_images = map(cache.load, images)
    maps_of_encoders = [torch.stack(maps) for maps in zip(*maps_of_images, strict=True)]
    sizes = torch.tensor([image.shape[-2:] for image in images])
    return {"vision_maps": maps_of_encoders, "image_sizes": sizes}


class ConversationCollator:
    """Makes a batch of samples.

    Either each sample has a row of its own, padded on the right. Or rows are `packed` with several
    samples, each of which sees only itself: the positions start again with every sample, there is no
    attention mask, and transformers' models tell the samples of a row apart by that. What is left of
    a packed row is one more sample, of padding.

    Every batch shows the vision model at least one image. Where no sample has any, a blank one stands
    in the padding, where nothing looks at it and nothing is learnt from it: sharded training needs
    every process to run every part of the model, and every parameter to get a gradient, if only zero.
    """

    def __init__(
        self, processor: FusionProcessor, packed: bool = False, cache: MapCache | None = None
    ) -> None:
        self.processor = processor
        self.packed = packed
        self.blank = image_inputs([BLANK], processor, cache)
        self.blank_tokens = processor.image_processor.num_tokens(*BLANK.shape[-2:])

    def __call__(self, samples: Sequence[Sample]) -> dict[str, Any]:
        rows = self._samples_in_rows(samples)
        with_images = []
        for row in rows:
            with_images += [sample for sample in row if "image_sizes" in sample]
        if with_images:
            return self._token_tensors(rows, blank_tokens=0) | self._join_images(with_images)
        return self._token_tensors(rows, self.blank_tokens) | self._join_images([self.blank])

    def _samples_in_rows(self, samples: Sequence[Sample]) -> list[list[Sample]]:
        """The samples of each row of the batch."""
        if not self.packed:
            return [[sample] for sample in samples]
        lengths = [len(sample["input_ids"]) for sample in samples]
        rows = []
        for numbers in pack_rows(lengths, max(lengths)):
            rows.append([samples[number] for number in numbers])
        return rows

    def _join_images(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """The images of several samples one behind the other, as pixels or as maps."""
        joined: dict[str, Any] = {"image_sizes": torch.cat([sample["image_sizes"] for sample in samples])}
        if "vision_maps" in self.blank:
            maps_of_samples = [sample["vision_maps"] for sample in samples]
            joined["vision_maps"] = list(map(torch.cat, zip(*maps_of_samples, strict=True)))
        else:
            joined["pixel_values"] = torch.cat([sample["pixel_values"] for sample in samples])
        return joined

    def _token_tensors(self, rows: Sequence[Sequence[Sample]], blank_tokens: int) -> dict[str, Tensor]:
        """Token tensors `[rows, width]`.

        The first row ends in `blank_tokens` places of the blank image.
        """
        width = max(map(_length_of_row, rows)) + blank_tokens
        ids = torch.full((len(rows), width), self.processor.tokenizer.pad_token_id)
        labels = torch.full_like(ids, LABEL_IGNORED)
        positions = torch.zeros_like(ids)
        mask = torch.zeros_like(ids)
        for number, row in enumerate(rows):
            start = 0
            for sample in row:
                length = len(sample["input_ids"])
                place = slice(start, start + length)
                ids[number, place] = torch.tensor(sample["input_ids"])
                labels[number, place] = torch.tensor(sample["labels"])
                positions[number, place] = torch.arange(length)
                mask[number, place] = 1
                start += length
            positions[number, start:] = torch.arange(width - start)
        if blank_tokens:
            ids[0, width - blank_tokens :] = self.processor.image_token_id
        tokens = {"input_ids": ids, "labels": labels}
        if self.packed:
            return tokens | {"position_ids": positions}
        return tokens | {"attention_mask": mask}


def _length_of_row(row: Sequence[Sample]) -> int:
    return sum(len(sample["input_ids"]) for sample in row)
