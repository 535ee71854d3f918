"""Mixes streams and other sources of conversations into an endless data set.

Samples have numbers, and every process and data worker knows which source gives the sample of a
number, whatever it has read before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from functools import partial
from itertools import count, islice
from math import lcm

from torch.utils.data import Dataset

from fusion.conversations.batches import Sample, training_item
from fusion.conversations.conversation import Conversation
from fusion.conversations.sources import ConversationSource
from fusion.conversations.stream import ConversationStream
from fusion.processing_fusion import FusionProcessor
from vision_core.randomness import numpy_generator

Source = ConversationSource | ConversationStream
# reads and checks a row that was drawn; what is wrong with the row is found when this is called
Draw = Callable[[], Conversation]


class StreamDataset(Dataset):
    """The first `samples` samples of a mixture without an end; an item is what `training_item` makes.

    Samples have numbers, as in any data set, so that a trainer deals batches to processes, resumes
    and counts as always, and the sample of a number is the same whoever asks for it. What is asked
    for in ascending order is read once. The rows in between are read past, neither checked nor
    decoded: they belong to another process or data worker, or were learnt before the run was resumed.
    A number below the last one begins again.
    """

    def __init__(
        self, sources: Sequence[Source], processor: FusionProcessor, max_length: int, seed: int, samples: int
    ) -> None:
        self.sources = list(sources)
        self.processor = processor
        self.max_length = max_length
        self.seed = seed
        self.samples = samples
        self.draws: Iterator[Draw] = iter(())
        self.next = samples  # number of the draw that comes next; at first, none has begun

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> Sample:
        if index < self.next:
            self.draws = draw_mixture(self.sources, self.seed)
            self.next = 0
        draw = next(islice(self.draws, index - self.next, None))
        self.next = index + 1
        return training_item(draw(), self.processor, self.max_length)


def draw_mixture(sources: Sequence[Source], seed: int) -> Iterator[Draw]:
    """Draws from sources in turn, by weight; a source that ends begins again, in another order."""
    draws = [draw_passes(source, seed, number) for number, source in enumerate(sources)]
    for number in turn_order([source.weight for source in sources]):
        yield next(draws[number])


def turn_order(weights: Sequence[float]) -> Iterator[int]:
    """The number of the source whose turn it is, without end.

    After any number n of turns, source i has had n w_i / sum(w) of them, to within less than one.
    Turn j of a source (from 0) comes at or behind floor(j / share) and before ceil((j + 1) / share).
    Some order keeps all these windows (Baruah et al. 1996, proportionate progress), so the earliest
    deadline first, of those whose time has come, keeps them too (Horn 1974). The weights are made
    integers, so that this is exact however long it goes on.
    """
    parts = _integer_parts(weights)
    total = sum(parts)
    turns_had = [0] * len(parts)
    for turn in count():
        due = []
        for number, part in enumerate(parts):
            if turns_had[number] * total // part <= turn:
                deadline = -(-(turns_had[number] + 1) * total // part)
                due.append((deadline, number))
        _, number = min(due)
        turns_had[number] += 1
        yield number


def _integer_parts(weights: Sequence[float]) -> list[int]:
    """Integers in the exact ratio of the weights."""
    ratios = list(map(Fraction, weights))
    scale = lcm(*(ratio.denominator for ratio in ratios))
    return [int(ratio * scale) for ratio in ratios]


def draw_passes(source: Source, seed: int, number: int) -> Iterator[Draw]:
    """All rows of source `number`, pass after pass.

    The order of each pass is a function of (seed, number, pass).
    """
    for epoch in count():
        generator = numpy_generator("stream mixture", seed, number, epoch)
        if isinstance(source, ConversationStream):
            for place, row in source.shuffled_rows(generator):
                yield partial(source.conversation, place, row)
        else:
            for place in generator.permutation(len(source)).tolist():
                yield partial(source.__getitem__, place)
