"""Streams of conversations for a trainer: an endless mixture, of which every process and every data
worker knows whose turn each sample is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from functools import partial
from itertools import count, islice
from math import lcm
from typing import Any

from torch.utils.data import Dataset

from fusion.conversations.conversation import Conversation
from fusion.conversations.mixtures import training_item
from fusion.conversations.sources import ConversationSource
from fusion.conversations.stream import ConversationStream
from fusion.processing_fusion import FusionProcessor
from vision_core.randomness import numpy_generator

Source = ConversationSource | ConversationStream
Draw = Callable[
    [], Conversation
]  # a row that has been read, or can be; what is wrong with it is found when it is called


class StreamDataset(Dataset):
    """The first `samples` of a mixture without an end; an item is as
    `fusion.conversations.mixtures.training_item` makes it.

    Samples have numbers, as in any data set, so that a trainer deals batches to processes, resumes
    and counts as always, and the sample of a number is the same whoever asks. What is asked for in
    ascending order is read once: whatever lies between is read past, neither checked nor decoded,
    since it is another process's or data worker's, or was there before the run was resumed. A
    number below the last one begins again.
    """

    def __init__(
        self, sources: Sequence[Source], processor: FusionProcessor, max_length: int, seed: int, samples: int
    ) -> None:
        self.sources, self.processor, self.max_length, self.seed, self.samples = (
            list(sources),
            processor,
            max_length,
            seed,
            samples,
        )
        self.draws: Iterator[Draw] = iter(())
        self.next = samples  # number of the draw that comes next; at first, none has begun

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index < self.next:
            self.draws, self.next = mixture(self.sources, self.seed), 0
        draw = next(islice(self.draws, index - self.next, None))
        self.next = index + 1
        return training_item(draw(), self.processor, self.max_length)


def mixture(sources: Sequence[Source], seed: int) -> Iterator[Draw]:
    """Draws from sources in turn, by weight; a source that ends begins again, in another order."""
    draws = [passes(source, seed, number) for number, source in enumerate(sources)]
    return (next(draws[number]) for number in turns([source.weight for source in sources]))


def turns(weights: Sequence[float]) -> Iterator[int]:
    """Whose turn it is, without end. After any number n of turns, source i has had n w_i / sum(w)
    of them, to within less than one.

    Turn j of a source (from 0) comes at or behind floor(j / share) and before ceil((j + 1) /
    share). Some order keeps all these windows (Baruah et al. 1996, proportionate progress), so the
    earliest deadline first, of those whose time has come, keeps them too (Horn 1974). In integers,
    exact however long.
    """
    ratios = [Fraction(weight) for weight in weights]
    scale = lcm(*(ratio.denominator for ratio in ratios))
    parts = [int(ratio * scale) for ratio in ratios]
    total, had = sum(parts), [0] * len(parts)
    for turn in count():
        due = [
            (-(-(had[i] + 1) * total // part), i)
            for i, part in enumerate(parts)
            if had[i] * total // part <= turn
        ]
        number = min(due)[1]
        had[number] += 1
        yield number


def passes(source: Source, seed: int, number: int) -> Iterator[Draw]:
    """All rows of source `number`, pass after pass, the order of each a function of (seed, number,
    pass)."""
    for epoch in count():
        generator = numpy_generator("stream mixture", seed, number, epoch)
        if isinstance(source, ConversationStream):
            yield from (partial(source.conversation, *row) for row in source.shuffled_rows(generator))
        else:
            yield from (
                partial(source.__getitem__, row) for row in generator.permutation(len(source)).tolist()
            )
