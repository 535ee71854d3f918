"""Opens streams of conversations: tables of unknown length that are read as they arrive.

Nothing is downloaded in advance.

    hf:NAME[:CONFIG]?split=train&streaming=true    a data set of the Hub, or of a folder
    parquet:GLOB?streaming=true                    files here, or where `datasets` reads from
                                                   (hf://, https://, s3://)

`shuffle_buffer=N` (1000 by default) is how many rows are held in memory; each draw takes one of them
at random, and 0 keeps the order. `weight=W`: see fusion/conversations/stream_data.py. The options
for columns and images are those of a table with an index (fusion/conversations/sources.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

import fsspec.asyn
import numpy as np
from torch.utils.data import get_worker_info

from fusion.conversations.conversation import BadRow, Conversation, one_line
from fusion.conversations.images import ImageReader
from fusion.conversations.rows import Columns, read_row
from fusion.conversations.sources import (
    columns_of,
    image_reader,
    is_stream,
    open_conversations,
    weight_of,
)
from fusion.conversations.tables import open_table, state_of_parquet_files
from vision_core.conversation_kinds import parse_conversations
from vision_core.errors import UserError, first_line
from vision_core.images.sources.hub import state_of_table
from vision_core.source_text import whole_number

NumberedRow = tuple[int, Mapping[str, Any]]  # the row's number from 0, and the row as its file has it


class ConversationStream:
    """Conversations one after the other.

    Iterating is one pass over all of them, in the order of the files; each pass asks for them anew.

    table: a `datasets.IterableDataset`, whose images are not decoded.
    shuffle_buffer: how many rows `shuffled_rows` holds in memory.
    weight: its share of a mixture, relative to the others.
    images: reads the images of the rows.
    columns: the columns that stand in for turns.
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
        self.name = name
        self.shuffle_buffer = shuffle_buffer
        self.weight = weight
        self.images = images or ImageReader(None)
        self.columns = columns or Columns()
        self.table = table.with_format("arrow")

    def state_of_files(self) -> tuple[str, str]:
        """Like `ConversationSource.state_of_files`; for a table elsewhere, what `datasets` knows."""
        return state_of_parquet_files(self.name) or (state_of_table(self.table), "")

    def __iter__(self) -> Iterator[Conversation]:
        for number, row in self.rows():
            yield self.conversation(number, row)

    def rows(self) -> Iterator[NumberedRow]:
        """All rows, in every process and data worker. Raises BadRow where the stream breaks off."""
        if get_worker_info() is not None:
            # a forked worker has the lock of its parent, but not the thread that would open it
            fsspec.asyn.reset_lock()
        number = 0
        try:
            # iterating the table itself would give each data worker only some of the files
            for table in self.table.iter(batch_size=1):
                yield number, table.to_pylist()[0]
                number += 1
        except Exception as error:  # of the network, a file, or a table unlike those before it
            reason = one_line(first_line(error))
            at = f"{self.name}, row {number + 1}"
            raise BadRow(f"{at}: the stream breaks off ({reason}); mend it and resume the run") from None
        if not number:
            raise UserError(f"{self.name} has no rows")

    def shuffled_rows(self, generator: np.random.Generator) -> Iterator[NumberedRow]:
        """The same rows in another order, each once.

        A row that is read goes to a random place in the buffer, and the row that was there comes
        out; those that are left come at the end.
        """
        held: list[NumberedRow] = []
        for row in self.rows():
            if len(held) < self.shuffle_buffer:
                held.append(row)
            elif held:
                place = int(generator.integers(len(held)))
                yield held[place]
                held[place] = row
            else:
                yield row
        for place in generator.permutation(len(held)):
            yield held[place]

    def conversation(self, number: int, row: Mapping[str, Any]) -> Conversation:
        """The conversation of row `number`, checked and with its images decoded. Raises BadRow."""
        return read_row(row, f"{self.name}, row {number + 1}", self.columns).conversation(self.images)


def open_stream(text: str) -> ConversationStream:
    """The stream that `text` names; only its first bytes are read.

    Raises UserError for what cannot be opened.
    """
    kind, where, options = parse_conversations(text)
    shuffle_buffer = whole_number(options, "shuffle_buffer", repr(text), 1000)
    weight = weight_of(text, options)
    images = image_reader(text, options)
    columns = columns_of(text, options)
    table = open_table(kind, where, options, streaming=True)
    return ConversationStream(text, table, shuffle_buffer, weight, images, columns)


def first_conversations(text: str, most: int) -> Iterator[Conversation]:
    """The first conversations of a source, stream or not, at most `most` of them."""
    if is_stream(text):
        return islice(open_stream(text), most)
    source = open_conversations(text)
    return map(source.__getitem__, range(min(len(source), most)))
