"""Opens sources of conversations by their texts: files, tables and drawn scenes.

A source is a text, `KIND:WHERE?option=value&option=value`:

    llava:FILE?images=FOLDER        JSON or JSONL with `conversations`; paths of images lie in FOLDER,
                                    by default the file's own
    messages:FILE?images=FOLDER     the same with `messages`
    parquet:GLOB                    a table with images as bytes, or as paths with images=FOLDER
    hf:NAME[:CONFIG]?split=train    a data set of the Hub, or a folder that `datasets` reads
    scenes?count=1000&turns=all     questions about drawn scenes, without any file: one of each
                                    scene, or all of them

The keys of a row mean the same in files and tables: see fusion/conversations/rows.py. Options of
both:

    question=COL&answer=COL    columns that stand in for turns; thoughts=COL is what is thought
                               before the answer
    caption=COL                a column that is the answer to "Describe the picture in one sentence."
    image=COL                  the column of the image or images
    follow_links=true          images may be links, or lie in linked folders, that lead out of the
                               folder of images
    max_pixels=NUMBER          the largest image that is read; 64,000,000 pixels without this option
    http=true                  images that are given by an address are fetched whenever they are read

`weight=W` in any source says how often it is drawn in a mixture. Rows are read when they are asked
for: of a JSONL file only the offsets of its lines are kept. With `streaming=true` a table is read as
it arrives (fusion/conversations/stream.py).
"""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from fusion.conversations.conversation import BadRow, Conversation, one_line, scene_conversation
from fusion.conversations.images import ImageReader
from fusion.conversations.rows import Columns, Row, read_row, unread_keys
from fusion.conversations.scene_turns import QuestionsPerScene, scene_turns
from fusion.conversations.tables import open_table, state_of_parquet_files
from vision_core.conversation_kinds import is_stream, parse_conversations
from vision_core.errors import UserError, first_line
from vision_core.files.regular_files import state_of_files
from vision_core.files.text_files import check_openable, is_deep, open_bytes, parse_json, read_bytes
from vision_core.images.pixel_options import take_pixel_options
from vision_core.images.sources.hub import state_of_table
from vision_core.randomness import numpy_generator
from vision_core.scenes.defaults import (
    DEFAULT_COUNTS,
    DEFAULT_SEED,
    DEFAULT_SIZE,
    DEFAULT_SPLIT,
    SCENE_SPLITS,
)
from vision_core.scenes.draw import draw_scene
from vision_core.source_text import true_or_false, whole_number

MAX_LIST_BYTES = 16 * 2**30
MAX_LINE_BYTES = 256 * 2**20  # a row may hold its images
NAME_A_FILE = "name a .json or .jsonl file of conversations"
MEND = "mend the line"


class ConversationSource(ABC):
    """Conversations by the numbers of their rows.

    weight: how often it is drawn in a mixture, relative to the others.
    answers_in_steps: whether some answers begin with the steps that lead to their last word.
    """

    name: str
    weight: float = 1.0
    answers_in_steps: bool = False

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def size_of(self, index: int) -> tuple[int, int]:
        """How many characters and images a row has; no image is opened. Raises BadRow."""

    @abstractmethod
    def __getitem__(self, index: int) -> Conversation:
        """Raises BadRow for whatever is wrong with the row."""

    def state_of_files(self) -> tuple[str, str]:
        """Two hashes of the files that hold the rows.

        The first is over names and sizes, so that a copy elsewhere has it too; the second is over
        times of change. Files of images that rows name are not looked at.
        """
        return self.name, ""

    def where(self, index: int) -> str:
        """File and row, counted from 1."""
        return f"{self.name}, row {index + 1}"

    def unread_keys(self, index: int) -> set[str]:
        """The keys of a row that nothing reads. Raises BadRow for what is not a row."""
        return set()


class RowSource(ConversationSource):
    """Rows of files, read by their keys.

    columns: the columns that stand in for turns.
    images: reads the images of the rows.
    """

    columns: Columns
    images: ImageReader

    @abstractmethod
    def row(self, index: int) -> Any:
        """The row as its file has it, images undecoded. Raises BadRow for what cannot be parsed."""

    def read(self, index: int) -> Row:
        """The row, checked. Raises BadRow."""
        return read_row(self.row(index), self.where(index), self.columns)

    def size_of(self, index: int) -> tuple[int, int]:
        row = self.read(index)
        characters = 0
        for message in row.messages:
            characters += len(message.text) + len(message.thoughts)
        return characters, len(row.images)

    def unread_keys(self, index: int) -> set[str]:
        return unread_keys(self.row(index), self.columns)

    def __getitem__(self, index: int) -> Conversation:
        return self.read(index).conversation(self.images)


class JsonSource(RowSource):
    """A JSON list, or JSONL of which only the offsets of the lines are kept."""

    def __init__(self, file: Path, images: ImageReader, columns: Columns) -> None:
        self.name = str(file)
        self.file = file
        self.images = images
        self.columns = columns
        if not os.path.lexists(file):
            raise UserError(f"{file} is not there; {NAME_A_FILE}")
        check_openable(file, str(file), NAME_A_FILE)
        if images.folder is not None and not os.path.isdir(images.folder):
            raise UserError(f"the folder of images {images.folder} is not there; name it by images=")
        self.rows: list[Any] | None = None
        if file.suffix == ".json":
            self.rows = self._read_list()
        else:
            self.offsets, self.lines = self._line_offsets()

    def __len__(self) -> int:
        return len(self.offsets) if self.rows is None else len(self.rows)

    def state_of_files(self) -> tuple[str, str]:
        return state_of_files([(self.file.name, str(self.file))])

    def where(self, index: int) -> str:
        if self.rows is None:
            return f"{self.file}, line {self.lines[index]}"
        return f"{self.file}, row {index + 1}"

    def row(self, index: int) -> Any:
        if self.rows is None:
            row = parse_json(self.line(index), self.where(index), MEND, BadRow, most_depth=None)
        else:
            row = self.rows[index]
        if is_deep(row):
            raise BadRow(f"{self.where(index)}: the JSON is nested too deeply for a conversation; {MEND}")
        return row

    def line(self, index: int) -> bytes:
        """The row as one line of JSON without the line's end; for JSONL the very bytes of the file."""
        if self.rows is not None:
            return json.dumps(self.rows[index]).encode()
        with self._open_file() as opened:
            opened.seek(self.offsets[index])
            line = opened.readline(MAX_LINE_BYTES + 1)
        if len(line) > MAX_LINE_BYTES:
            cure = "give its images as files, or leave it out"
            raise BadRow(f"{self.where(index)}: the line has more than {MAX_LINE_BYTES:,} bytes; {cure}")
        return line.rstrip(b"\r\n")

    def _open_file(self) -> BinaryIO:
        return open_bytes(self.file, str(self.file), NAME_A_FILE)

    def _read_list(self) -> list[Any]:
        cure = "mend the file; rows one to a line go into a .jsonl file"
        data = read_bytes(self.file, self.name, cure, most_bytes=MAX_LIST_BYTES)
        # the depth of each row is looked at when it is asked for
        rows = parse_json(data, self.name, cure, most_depth=None)
        if not isinstance(rows, list):
            cure = "write each row as an object in one list"
            raise UserError(f"{self.file} holds {type(rows).__name__}, not a list of rows; {cure}")
        return rows

    def _line_offsets(self) -> tuple[np.ndarray, np.ndarray]:
        """Where each line that is not blank begins, in bytes, and its number, from 1."""
        places = []
        number = 1  # of the current line
        begin = 0
        end = 0
        is_blank = True
        with self._open_file() as opened:
            # a line of more than MAX_LINE_BYTES comes in several pieces
            for piece in iter(partial(opened.readline, MAX_LINE_BYTES), b""):
                end += len(piece)
                is_blank = is_blank and not piece.strip()
                if piece.endswith(b"\n"):
                    if not is_blank:
                        places.append((begin, number))
                    number += 1
                    begin = end
                    is_blank = True
        if not is_blank:  # the last line has no line break
            places.append((begin, number))
        offsets, numbers = np.array(places, dtype=np.int64).reshape(-1, 2).T
        return offsets, numbers


class TableSource(RowSource):
    """A table of `datasets`: parquet files, a data set of the Hub, or a folder.

    Images are objects with bytes or a path, wherever in the row they are.
    """

    def __init__(self, name: str, table: Any, images: ImageReader, columns: Columns) -> None:
        self.name = name
        self.table = table
        self.images = images
        self.columns = columns
        # in this format `datasets` decodes no image, however deep in a row it is
        self.undecoded = table.with_format("arrow")

    def state_of_files(self) -> tuple[str, str]:
        state = state_of_parquet_files(self.name)
        return state or (state_of_table(self.table), self.table._fingerprint)

    def __len__(self) -> int:
        return len(self.table)

    def row(self, index: int) -> Any:
        try:
            return self.undecoded[index].to_pylist()[0]
        except Exception as error:  # pyarrow may raise anything for a value of another type
            fault = f"the row cannot be read ({one_line(first_line(error))})"
            raise BadRow(f"{self.where(index)}: {fault}; write the table anew") from None


class SceneConversations(ConversationSource):
    """Questions about drawn scenes, one scene to a conversation."""

    answers_in_steps = True

    def __init__(self, count: int, size: int, seed: int, split: str, turns: QuestionsPerScene) -> None:
        self.name = f"scenes ({split})"
        self.count = count
        self.size = size
        self.seed = seed
        self.split = split
        self.turns = turns

    def state_of_files(self) -> tuple[str, str]:
        return f"scenes of {self.size} pixels, seed {self.seed}, {self.split}, {self.turns} turns", ""

    def __len__(self) -> int:
        return self.count

    def size_of(self, index: int) -> tuple[int, int]:
        return 0, 1  # all scenes are alike

    def __getitem__(self, index: int) -> Conversation:
        scene = draw_scene(self.seed, index, self.size, self.split)
        generator = numpy_generator("scene turns", self.seed, self.split, index)
        asked = scene_turns(scene, index, self.turns, generator)
        return scene_conversation(self.where(index), scene, asked)


def open_conversations(text: str) -> ConversationSource:
    """The source that `text` names; see the module. Raises UserError for what cannot be opened."""
    kind, where, options = parse_conversations(text)
    if is_stream(text):
        reason = "of which nobody can ask for a row by its number or for their count"
        raise UserError(f"{text!r} is a stream, {reason}; leave out streaming=true")
    source: ConversationSource
    if kind in ("llava", "messages"):
        file = Path(where)
        source = JsonSource(file, image_reader(text, options, file.parent), columns_of(text, options))
    elif kind == "scenes":
        source = _open_scenes(text, options)
    else:
        images = image_reader(text, options)
        columns = columns_of(text, options)
        source = TableSource(text, open_table(kind, where, options), images, columns)
    source.weight = weight_of(text, options)
    if not len(source):
        raise UserError(f"{text} has no rows")
    return source


def _open_scenes(text: str, options: Mapping[str, str]) -> SceneConversations:
    split = options.get("split", DEFAULT_SPLIT)
    if split not in SCENE_SPLITS:
        raise UserError(f"{text!r}: there is no split {split!r} of scenes; use train or held_out")
    turns = options.get("turns", "one")
    if turns not in ("one", "all"):
        raise UserError(f"{text!r}: turns={turns} is neither one nor all")
    count = whole_number(options, "count", repr(text), DEFAULT_COUNTS[split])
    size = whole_number(options, "size", repr(text), DEFAULT_SIZE)
    seed = whole_number(options, "seed", repr(text), DEFAULT_SEED)
    return SceneConversations(count, size, seed, split, turns)


def image_reader(text: str, options: Mapping[str, str], folder: Path | None = None) -> ImageReader:
    """The reader of the images of the source `text`. Raises UserError.

    folder: where the images lie, where the source names no folder.
    """
    return ImageReader(
        folder=Path(options["images"]) if "images" in options else folder,
        http=true_or_false(options, "http", repr(text)),
        follow_links=true_or_false(options, "follow_links", repr(text)),
        max_pixels=take_pixel_options(text, options)[0].max_pixels,
    )


def columns_of(text: str, options: Mapping[str, str]) -> Columns:
    """The columns that the source `text` names. Raises UserError where they do not go together."""
    columns = Columns(
        question=options.get("question"),
        answer=options.get("answer"),
        thoughts=options.get("thoughts"),
        caption=options.get("caption"),
        image=options.get("image"),
    )
    if (columns.question is None) != (columns.answer is None):
        raise UserError(f"{text!r}: question= and answer= go together; name both columns")
    if columns.caption is not None and columns.question is not None:
        cure = "leave out caption=, or question= and answer="
        raise UserError(f"{text!r}: a row has a caption or a question and an answer, not both; {cure}")
    if columns.thoughts is not None and columns.question is None:
        cure = "name its column by answer=, and question="
        raise UserError(f"{text!r}: thoughts= are those before an answer; {cure}")
    return columns


def weight_of(text: str, options: Mapping[str, str]) -> float:
    """The weight of the source `text`. Raises UserError."""
    value = options.get("weight", "1")
    try:
        weight = float(value)
    except ValueError:
        weight = -1.0
    if not 0 < weight < float("inf"):
        raise UserError(f"{text!r}: weight={value} is not a number above 0")
    return weight
