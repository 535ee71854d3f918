"""Where conversations come from: files in the formats in which people keep them, tables, drawn
scenes; one way in.

A source is a text, `KIND:WHERE?option=value&option=value`:

    llava:FILE?images=FOLDER       JSON or JSONL; paths of images lie in FOLDER, by default the
    file's own messages:FILE?images=FOLDER    the same parquet:GLOB                   a table with
    images as bytes in the file, or as paths with images=FOLDER hf:NAME[:CONFIG]?split=train   a
    data set of the Hub, or a folder that `datasets` reads scenes?count=1000&turns=all    questions
    about drawn scenes, with no file at all: one of each scene, or all of them

The keys of a row mean the same in files and tables: see fusion/conversations/rows.py. Options of
both:

    question=COL&answer=COL        columns that stand in for turns; with thoughts=COL, what is
    thought before the answer caption=COL                    a column that is the answer to
    "Describe the picture in one sentence." image=COL                      the column of the image
    or images follow_links=true              images may be links, or lie in linked folders, that
    lead out of the folder of images max_pixels=NUMBER              the largest image that is read,
    64,000,000 pixels without this option http=true                      images that are given by an
    address are fetched, whenever they are read

`weight=W` in any source: how often it is drawn in a mixture. Rows are read when they are asked for:
of a JSONL file only the offsets of its lines are kept. With `streaming=true` a table is read as it
arrives (conversation_stream.py).
"""

from __future__ import annotations

import glob
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from fusion.conversations.conversation import BadRow, Conversation, scene_conversation, shortened
from fusion.conversations.images import ImageReader
from fusion.conversations.rows import Columns, Row, read_row, unread_keys
from fusion.conversations.scene_turns import Turns, scene_turns
from vision_core.conversation_kinds import COLUMN_OPTIONS, is_stream, parse_conversations
from vision_core.errors import UserError, first_line
from vision_core.files.regular_files import refuse_special_files, short_names, state_of_files
from vision_core.files.text_files import check_openable, is_deep, open_bytes, parse_json, read_bytes
from vision_core.hub import hub_or_cache
from vision_core.images.pixel_options import take_pixel_options
from vision_core.images.sources.hub import state_of_table
from vision_core.images.sources.parquet_footer import check_footers
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
    """Rows by number.

    weight: how often it is drawn in a mixture, relative to the others.
    read_aloud: answers begin with what was looked up for them.
    """

    name: str
    weight: float = 1.0
    read_aloud: bool = False

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def size_of(self, index: int) -> tuple[int, int]:
        """Characters and images of a row, whose images are not opened. Raises BadRow."""

    @abstractmethod
    def __getitem__(self, index: int) -> Conversation:
        """Raises BadRow for whatever is wrong with the row."""

    def state_of_files(self) -> tuple[str, str]:
        """A hash over names and sizes of the files of rows, which a copy elsewhere has too, and one
        over times of change.

        Files of images that rows name are not looked at.
        """
        return self.name, ""

    def where(self, index: int) -> str:
        """File and row, counted from 1."""
        return f"{self.name}, row {index + 1}"

    def unread_keys(self, index: int) -> set[str]:
        """The keys of a row that nothing reads. Raises BadRow for what is no row."""
        return set()


class RowSource(ConversationSource):
    """Rows of files, by their keys. columns: those that stand in for turns. images: reads them."""

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
        return sum(len(message.text) + len(message.thoughts) for message in row.messages), len(row.images)

    def unread_keys(self, index: int) -> set[str]:
        return unread_keys(self.row(index), self.columns)

    def __getitem__(self, index: int) -> Conversation:
        return self.read(index).conversation(self.images)


class JsonSource(RowSource):
    """A JSON list, or JSONL of which only the offsets of the lines are kept; images are files in a
    folder."""

    def __init__(self, file: Path, images: ImageReader, columns: Columns) -> None:
        self.name, self.file, self.images, self.columns = str(file), file, images, columns
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
        return (
            f"{self.file}, line {self.lines[index]}" if self.rows is None else f"{self.file}, row {index + 1}"
        )

    def row(self, index: int) -> Any:
        row = (
            self.rows[index]
            if self.rows is not None
            else parse_json(self.line(index), self.where(index), MEND, BadRow, most_depth=None)
        )
        if is_deep(row):
            raise BadRow(f"{self.where(index)}: the JSON is nested too deeply for a conversation; {MEND}")
        return row

    def line(self, index: int) -> bytes:
        """The row as one line of JSON, without the line's end: of a JSONL file the very bytes that
        stand there."""
        if self.rows is not None:
            return json.dumps(self.rows[index]).encode()
        with self._opened() as opened:
            opened.seek(self.offsets[index])
            line = opened.readline(MAX_LINE_BYTES + 1)
        if len(line) > MAX_LINE_BYTES:
            cure = "give its images as files, or leave it out"
            raise BadRow(f"{self.where(index)}: the line has more than {MAX_LINE_BYTES:,} bytes; {cure}")
        return line.rstrip(b"\r\n")

    def _opened(self) -> BinaryIO:
        return open_bytes(self.file, str(self.file), NAME_A_FILE)

    def _read_list(self) -> list[Any]:
        name, cure = str(self.file), "mend the file; rows one to a line go into a .jsonl file"
        data = read_bytes(self.file, name, cure, most_bytes=MAX_LIST_BYTES)
        rows = parse_json(data, name, cure, most_depth=None)  # of each row when it is asked for
        if not isinstance(rows, list):
            raise UserError(
                f"{self.file} holds {type(rows).__name__}, not a list of rows; write each row as an object in one list"
            )
        return rows

    def _line_offsets(self) -> tuple[np.ndarray, np.ndarray]:
        """Where each line that is not blank begins, in bytes, and its number, from 1."""
        places, offset, number = [], 0, 1
        with self._opened() as opened:
            while piece := opened.readline(MAX_LINE_BYTES):
                begins = offset
                is_blank = not piece.strip()
                while (
                    not piece.endswith(b"\n") and len(piece) == MAX_LINE_BYTES
                ):  # a longer line, of which no more is kept
                    offset += len(piece)
                    piece = opened.readline(MAX_LINE_BYTES)
                    is_blank = is_blank and not piece.strip()
                offset += len(piece)
                if not is_blank:
                    places.append((begins, number))
                number += 1
        return tuple(np.array(places, dtype=np.int64).reshape(-1, 2).T)


class TableSource(RowSource):
    """A table of `datasets`: parquet files, a data set of the Hub, a folder.

    Images are objects with bytes or a path, wherever in the row they stand.
    """

    def __init__(self, name: str, table: Any, images: ImageReader, columns: Columns) -> None:
        self.name, self.table, self.images, self.columns = name, table, images, columns
        # `datasets` decodes nothing in this format, however deep in a row an image stands
        self.undecoded = table.with_format("arrow")

    def state_of_files(self) -> tuple[str, str]:
        kind, where, _ = parse_conversations(self.name)
        if kind == "parquet" and (files := sorted(glob.glob(where, recursive=True))):
            return state_of_files(zip(short_names(files), files, strict=True))
        return state_of_table(self.table), self.table._fingerprint

    def __len__(self) -> int:
        return len(self.table)

    def row(self, index: int) -> Any:
        try:
            return self.undecoded[index].to_pylist()[0]
        except (
            Exception
        ) as error:  # pyarrow raises what it likes for values that are not of their column's type
            reason = shortened(first_line(error))
            raise BadRow(
                f"{self.where(index)}: the row cannot be read ({reason}); write the table anew"
            ) from None


class SceneConversations(ConversationSource):
    """Questions about drawn scenes, one scene to a conversation."""

    read_aloud = True

    def __init__(self, count: int, size: int, seed: int, split: str, turns: Turns) -> None:
        self.name = f"scenes ({split})"
        self.count, self.size, self.seed = count, size, seed
        self.split, self.turns = split, turns

    def state_of_files(self) -> tuple[str, str]:
        return (f"scenes of {self.size} pixels, seed {self.seed}, {self.split}, {self.turns} turns", "")

    def __len__(self) -> int:
        return self.count

    def size_of(self, index: int) -> tuple[int, int]:
        return 0, 1  # all are alike

    def __getitem__(self, index: int) -> Conversation:
        scene = draw_scene(self.seed, index, self.size, self.split)
        asked = scene_turns(
            scene, index, self.turns, numpy_generator("scene turns", self.seed, self.split, index)
        )
        return scene_conversation(self.where(index), scene, asked)


def open_conversations(text: str) -> ConversationSource:
    """The source that `text` names; see the module. Raises UserError for what cannot be opened."""
    kind, where, options = parse_conversations(text)
    if is_stream(text):
        reason = "of which nobody can ask for a row by its number or for their count"
        raise UserError(f"{text!r} is a stream, {reason}; leave out streaming=true")
    if kind in ("llava", "messages"):
        reader = image_reader(text, options, Path(where).parent)
        source: ConversationSource = JsonSource(Path(where), reader, columns_of(text, options))
    elif kind == "scenes":
        split = options.get("split", DEFAULT_SPLIT)
        if split not in SCENE_SPLITS:
            raise UserError(f"{text!r}: there is no split {split!r} of scenes; use train or held_out")
        turns = options.get("turns", "one")
        if turns not in ("one", "all"):
            raise UserError(f"{text!r}: turns={turns} is neither one nor all")
        count = whole_number(options, "count", repr(text), DEFAULT_COUNTS[split])
        size = whole_number(options, "size", repr(text), DEFAULT_SIZE)
        seed = whole_number(options, "seed", repr(text), DEFAULT_SEED)
        source = SceneConversations(count, size, seed, split, turns)
    else:
        reader, columns = image_reader(text, options), columns_of(text, options)
        source = TableSource(text, open_table(kind, where, options), reader, columns)
    source.weight = weight_of(text, options)
    if not len(source):
        raise UserError(f"{text} has no rows")
    return source


def image_reader(text: str, options: Mapping[str, str], folder: Path | None = None) -> ImageReader:
    """Of the source `text`, whose images lie in `folder` where it names none. Raises UserError."""
    named = Path(options["images"]) if "images" in options else folder
    max_pixels = take_pixel_options(text, options)[0].max_pixels
    return ImageReader(
        named,
        true_or_false(options, "http", repr(text)),
        true_or_false(options, "follow_links", repr(text)),
        max_pixels,
    )


def columns_of(text: str, options: Mapping[str, str]) -> Columns:
    """The columns that the source `text` names. Raises UserError for some that do not go
    together."""
    columns = Columns(**{name: options[name] for name in COLUMN_OPTIONS if name in options})
    if "" in columns.named():
        raise UserError(f"{text!r}: an option names no column; write for example question=COLUMN")
    if (columns.question is None) != (columns.answer is None):
        raise UserError(f"{text!r}: question= and answer= go together; name both columns")
    if columns.caption is not None and columns.question is not None:
        cure = "leave out caption=, or question= and answer="
        raise UserError(f"{text!r}: a row has a caption or a question and an answer, not both; {cure}")
    if columns.thoughts is not None and columns.question is None:
        raise UserError(
            f"{text!r}: thoughts= are those before an answer; name its column by answer=, and question="
        )
    return columns


def open_table(kind: str, where: str, options: Mapping[str, str], streaming: bool = False) -> Any:
    """The `datasets.Dataset`, or `IterableDataset`, of a parquet or hf source. Raises UserError."""
    asks_the_hub = kind == "hf" and not Path(where.partition(":")[0]).is_dir()
    with hub_or_cache(f"hf:{where}") if asks_the_hub else nullcontext():
        return _open_table(kind, where, options, streaming)


def _open_table(kind: str, where: str, options: Mapping[str, str], streaming: bool) -> Any:
    import datasets

    name, _, config = where.partition(":")
    if kind == "parquet":
        for path in glob.glob(where, recursive=True):
            check_openable(path, f"{kind}:{where}: {path}", "name regular files of parquet")
    else:
        refuse_special_files(name, at_any_depth=True)
    try:
        check_footers(where)
        if kind == "parquet":
            return datasets.load_dataset("parquet", data_files=where, split="train", streaming=streaming)
        split, revision = options.get("split", "train"), options.get("revision")
        return datasets.load_dataset(
            name, config or None, split=split, revision=revision, streaming=streaming
        )
    except UserError:
        raise
    except Exception as error:  # a missing file, name or split raises whatever its reader does
        reason = first_line(
            error.__cause__ or error
        )  # `datasets` says that something failed, and its cause says what
        raise UserError(f"{kind}:{where} cannot be opened ({reason})") from None


def weight_of(text: str, options: Mapping[str, str]) -> float:
    """The weight of the source `text`. Raises UserError."""
    value = options.get("weight", "1")
    try:
        weight = float(value)
    except ValueError:
        weight = -1.0
    if not 0 < weight < float("inf"):
        raise UserError(f"{text!r}: weight={value} is no number above 0")
    return weight
