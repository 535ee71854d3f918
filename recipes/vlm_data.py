"""Conversations for a trainer: a mixture of sources as a data set, and batches of text-only, one-image and several-image samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from fusion.processing_fusion import FusionProcessor
from recipes.chat_tokens import IGNORED, tokenise
from recipes.conversations import ConversationSource
from vision_core.errors import UserError
from vision_core.randomness import numpy_generator

# what stands in a batch without images for the image that its vision model must see; it covers one row of cells
BLANK = torch.full((3, 8, 256), 127, dtype=torch.uint8)


class ConversationDataset(Dataset):
    """Sources, mixed. A source of weight w has w times its rows in an epoch: whole rounds of all rows, and a draw of some for the rest.

    An item is a dict of `input_ids`, `labels` (lists), `pixel_values` (of each encoder `[images, C, side, side]`) and `image_sizes` `[images, 2]`.
    Raises BadRow, with file and row, for a row that cannot be trained on.
    """

    def __init__(self, sources: Sequence[ConversationSource], processor: FusionProcessor, max_length: int, seed: int = 0) -> None:
        self.sources, self.processor, self.max_length = list(sources), processor, max_length
        places = [(number, row) for number, source in enumerate(self.sources) for row in rows_of(source, seed, number)]
        self.places = np.array(places, dtype=np.int64).reshape(-1, 2)

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> dict[str, Any]:
        number, row = self.places[index]
        conversation = self.sources[number][int(row)]
        tokens = tokenise(conversation, self.processor, self.max_length)
        item: dict[str, Any] = {"input_ids": tokens.input_ids, "labels": tokens.labels}
        if conversation.images:
            item |= self.processor.image_processor(list(conversation.images))
        return item


def rows_of(source: ConversationSource, seed: int, number: int) -> list[int]:
    """Rows of a source in an epoch, by its weight."""
    wanted = round(len(source) * source.weight)
    if wanted < 1:
        raise UserError(f"{source.name}: {len(source)} rows at weight {source.weight} are none; raise the weight")
    rounds, rest = divmod(wanted, len(source))
    drawn = numpy_generator("mixture", seed, number).permutation(len(source))[:rest]
    return [*range(len(source))] * rounds + sorted(int(row) for row in drawn)


class ConversationCollator:
    """Samples to a batch, padded on the right.

    Every batch shows the vision model at least one image. Where no sample has any, a blank one stands in the padding, where nothing looks at it and
    nothing is learnt from it: sharded training needs every process to run every part of the model, and every parameter to get a gradient, if one of zero.
    """

    def __init__(self, processor: FusionProcessor) -> None:
        self.processor = processor
        self.blank = processor.image_processor([BLANK])

    def __call__(self, items: Sequence[dict[str, Any]]) -> dict[str, Any]:
        images = [item for item in items if "image_sizes" in item] or [self.blank]
        ghost = self.processor.image_processor.num_tokens(*BLANK.shape[-2:]) if images[0] is self.blank else 0
        longest = max(len(item["input_ids"]) for item in items) + ghost
        ids = torch.full((len(items), longest), self.processor.tokenizer.pad_token_id)
        labels, mask = torch.full_like(ids, IGNORED), torch.zeros_like(ids)
        for row, item in enumerate(items):
            length = len(item["input_ids"])
            ids[row, :length], labels[row, :length], mask[row, :length] = torch.tensor(item["input_ids"]), torch.tensor(item["labels"]), 1
        if ghost:
            ids[0, longest - ghost :] = self.processor.image_token_id
        return {
            "input_ids": ids,
            "labels": labels,
            "attention_mask": mask,
            "pixel_values": [torch.cat(of_encoder) for of_encoder in zip(*(item["pixel_values"] for item in images), strict=True)],
            "image_sizes": torch.cat([item["image_sizes"] for item in images]),
        }
