"""Mixes sources of conversations, each by its weight, into a data set with an index.

How a conversation becomes a sample: fusion/conversations/batches.py. Mixtures of streams:
fusion/conversations/stream_data.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch.utils.data import Dataset

from fusion.conversations.batches import Sample, training_item
from fusion.conversations.sources import ConversationSource
from fusion.map_cache import MapCache
from fusion.processing_fusion import FusionProcessor
from vision_core.errors import UserError
from vision_core.randomness import numpy_generator

CHARACTERS_PER_TOKEN = 4  # roughly


class ConversationDataset(Dataset):
    """The rows of several sources, mixed.

    A source of weight w has w times its rows in every epoch, always the same ones: complete rounds
    of all rows, and a draw of some for the rest.

    An item is what `training_item` makes. Raises BadRow, with file and row, for a row that cannot be
    trained on.
    """

    def __init__(
        self,
        sources: Sequence[ConversationSource],
        processor: FusionProcessor,
        max_length: int,
        seed: int = 0,
        cache: MapCache | None = None,
    ) -> None:
        self.sources = list(sources)
        self.processor = processor
        self.max_length = max_length
        self.cache = cache
        places: list[tuple[int, int]] = []  # number of the source, and of the row in it
        for number, source in enumerate(self.sources):
            places += [(number, row) for row in rows_of_an_epoch(source, seed, number)]
        self.places = np.array(places, dtype=np.int64).reshape(-1, 2)

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Sample:
        number, row = self.places[index]
        return training_item(self.sources[number][int(row)], self.processor, self.max_length, self.cache)

    def rough_lengths(self) -> list[int]:
        """The length of every sample, in characters, with some characters for each image token.

        It is exact enough to put samples of like length together, and no image is opened for it.
        """
        image_processor = self.processor.image_processor
        side = max(transform["size"][0] for transform in image_processor.transforms)
        image_length = CHARACTERS_PER_TOKEN * image_processor.num_tokens(side, side)
        known: dict[tuple[int, int], int] = {}
        lengths = []
        for number, row in self.places.tolist():
            if (number, row) not in known:
                characters, image_count = self.sources[number].size_of(row)
                known[number, row] = characters + image_count * image_length
            lengths.append(known[number, row])
        return lengths


def rows_of_an_epoch(source: ConversationSource, seed: int, number: int) -> list[int]:
    """The rows of source `number` in every epoch, as many as its weight says."""
    wanted = round(len(source) * source.weight)
    if wanted < 1:
        raise UserError(
            f"{source.name}: {len(source)} rows at weight {source.weight} are none; raise the weight"
        )
    rounds, rest = divmod(wanted, len(source))
    permutation = numpy_generator("mixture", seed, number).permutation(len(source))
    return [*range(len(source))] * rounds + sorted(permutation[:rest].tolist())
