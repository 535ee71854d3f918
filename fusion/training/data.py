"""The conversations of a stage: opened alike on all processes, and brought into an order."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch.utils.data import Dataset, Sampler, SequentialSampler

from fusion.conversations.mixtures import ConversationDataset
from fusion.conversations.sources import open_conversations
from fusion.conversations.stream import ConversationStream, open_stream
from fusion.conversations.stream_data import Source, StreamDataset
from fusion.map_cache import MapCache
from fusion.processing_fusion import FusionProcessor
from fusion.training.options import DataOptions
from fusion.training.trainer import GroupedByLength
from vision_core.conversation_kinds import is_stream
from vision_core.processes.distributed import refuse_unequal
from vision_core.randomness import numpy_generator
from vision_core.runs.data_facts import DataFacts


def open_alike(data: DataOptions) -> tuple[list[Source], list[Source]]:
    """The sources that are trained on, and those that are held out.

    Raises UserError, on all processes, for one that cannot be opened and where the processes do not
    see the same rows.
    """
    sources = open_sources(data.conversations)
    held_out = open_sources(data.held_out)
    refuse_unequal(row_counts(data.conversations, sources) | row_counts(data.held_out, held_out))
    return sources, held_out


def open_sources(texts: Sequence[str]) -> list[Source]:
    """The source of each text. Raises UserError."""
    return [open_stream(text) if is_stream(text) else open_conversations(text) for text in texts]


def row_counts(texts: Sequence[str], sources: Sequence[Source]) -> dict[str, int]:
    """The rows of each source by its text; a stream's are not known."""
    counts = {}
    for text, source in zip(texts, sources, strict=True):
        if not is_stream(text):
            counts[text] = len(source)
    return counts


def facts_of_rows(sources: Sequence[Source], held_out: Sequence[Source]) -> list[DataFacts]:
    """What a checkpoint remembers of the files of rows. Images that rows name are not looked at."""
    facts = []
    for option, sources_of_option in (("conversations", sources), ("eval_conversations", held_out)):
        for number, source in enumerate(sources_of_option, 1):
            facts.append(facts_of_source(f"{option} {number}", source))
    return facts


def facts_of_source(name: str, source: Source) -> DataFacts:
    """What a checkpoint remembers of one source, under `name`."""
    count = None if isinstance(source, ConversationStream) else len(source)
    content, times = source.state_of_files()
    return DataFacts(name, source.name, count, unit="rows", content=content, times=times)


def build_training_data(
    sources: Sequence[Source],
    data: DataOptions,
    processor: FusionProcessor,
    seed: int,
    samples_of_a_step: int,
    max_steps: int,
    cache: MapCache | None,
) -> tuple[Dataset, Sampler | None]:
    """The samples, and their order where it is not the Trainer's own.

    samples_of_a_step: over all processes and accumulated batches. max_steps: how long a stream is
    read. cache: the frozen encoders' features, where they are kept.
    """
    if any(map(is_stream, data.conversations)):
        samples = max_steps * samples_of_a_step
        stream = StreamDataset(sources, processor, data.max_length, seed, samples)
        return stream, SequentialSampler(stream)
    dataset = ConversationDataset(sources, processor, data.max_length, seed, cache)
    if not data.group_by_length:
        return dataset, None
    generator = partial(numpy_generator, "length groups", seed)
    return dataset, GroupedByLength(dataset.rough_lengths(), samples_of_a_step, generator)
