"""A stream of conversations: a table that is read as it arrives, without a download in advance, of
unknown length.

    hf:NAME[:CONFIG]?split=train&streaming=true       a data set of the Hub, or of a folder
    parquet:GLOB?streaming=true                       files here, or where `datasets` reads from
    (hf://, https://, s3://)

`shuffle_buffer=N` (1000) in either: rows held in memory, of which each draw takes one at random; 0
keeps the order. `weight=W`: see fusion/conversations/stream_data.py. Options for columns and images
are those of a table with an index.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from glob import glob
from itertools import islice
from typing import Any

import fsspec.asyn
import numpy as np
from torch.utils.data import get_worker_info

from fusion.conversations.conversation import BadRow, Conversation, shortened
from fusion.conversations.images import ImageReader
from fusion.conversations.rows import Columns, read_row
from fusion.conversations.sources import (
    columns_of,
    image_reader,
    is_stream,
    open_conversations,
    open_table,
    weight_of,
)
from vision_core.conversation_kinds import parse_conversations
from vision_core.errors import UserError, first_line
from vision_core.files.regular_files import short_names, state_of_files
from vision_core.images.sources.hub import state_of_table
from vision_core.source_text import whole_number


class ConversationStream:
    """Conversations one after the other; iterating is one pass over all, in the order of the files.

    Each pass asks for them anew. table: a `datasets.IterableDataset`, whose images are not decoded.
    weight: its share of a mixture, relative to the others. images, columns: as those of a table
    with an index (conversation_sources.py).
    """

    def __init__(
        self,
        name: str,
        table: Any,
        shuffle_buffer: int = 1000,
        weight: float = 1.0,
        images: ImageReader | None = None,
        columns: Columns | None = None,
    ) -> None:
        self.name, self.shuffle_buffer, self.weight = name, shuffle_buffer, weight
        self.images, self.columns = images or ImageReader(None), columns or Columns()
        self.table = table.with_format("arrow")

    def state_of_files(self) -> tuple[str, str]:
        """As of a `ConversationSource`; of a table that is read from elsewhere, what `datasets`
        knows of it."""
        kind, where, _ = parse_conversations(self.name)
        if kind == "parquet" and (files := sorted(glob(where, recursive=True))):
            return state_of_files(zip(short_names(files), files, strict=True))
        return state_of_table(self.table), ""

    def __iter__(self) -> Iterator[Conversation]:
        return (self.conversation(*row) for row in self.rows())

    def rows(self) -> Iterator[tuple[int, Mapping[str, Any]]]:
        """(number from 0, row as its file has it): all of them, in every process and data worker.

        Raises BadRow where the stream breaks off.
        """
        if get_worker_info() is not None:
            fsspec.asyn.reset_lock()  # forked, it has the lock of its parent, and not the thread that would open it
        number = 0
        try:
            # iterating the table itself would give each data worker some of the files, and leave
            # some without any
            for table in self.table.iter(batch_size=1):
                yield number, table.to_pylist()[0]
                number += 1
        except Exception as error:  # of the network, of a file, of a table that is unlike those before it
            reason = shortened(first_line(error))
            at = f"{self.name}, row {number + 1}"
            raise BadRow(f"{at}: the stream breaks off ({reason}); mend it and resume the run") from None
        if not number:
            raise UserError(f"{self.name} has no rows")

    def shuffled_rows(self, generator: np.random.Generator) -> Iterator[tuple[int, Mapping[str, Any]]]:
        """The same rows, each once.

        What is read goes to a random place in the buffer, and what was there comes out; what is
        left comes at the end.
        """
        held: list[tuple[int, Mapping[str, Any]]] = []
        for row in self.rows():
            if len(held) < self.shuffle_buffer:
                held.append(row)
            elif held:
                place = int(generator.integers(len(held)))
                yield held[place]
                held[place] = row
            else:
                yield row
        yield from (held[place] for place in generator.permutation(len(held)))

    def conversation(self, number: int, row: Mapping[str, Any]) -> Conversation:
        """Row `number`, checked, its images decoded. Raises BadRow."""
        return read_row(row, f"{self.name}, row {number + 1}", self.columns).conversation(self.images)


def open_stream(text: str) -> ConversationStream:
    """The stream that `text` names, of which only the first bytes are read.

    Raises UserError for what cannot be opened.
    """
    kind, where, options = parse_conversations(text)
    shuffle_buffer = whole_number(options, "shuffle_buffer", repr(text), 1000)
    weight, images, columns = (
        weight_of(text, options),
        image_reader(text, options),
        columns_of(text, options),
    )
    table = open_table(kind, where, options, streaming=True)
    return ConversationStream(text, table, shuffle_buffer, weight, images, columns)


def first_conversations(text: str, most: int) -> Iterator[Conversation]:
    """The first of a source, stream or not, at most `most`."""
    if is_stream(text):
        return islice(open_stream(text), most)
    source = open_conversations(text)
    return (source[row] for row in range(min(len(source), most)))
