"""Where conversations come from: files in the formats in which people keep them, tables, drawn scenes; one way in.

A source is a text, `KIND:WHERE?option=value&option=value`:

    llava:FILE?images=FOLDER       LLaVA, Cambrian, ShareGPT: JSON or JSONL, `conversations` of `from` human / gpt and `value`, `image` one path or several
    messages:FILE?images=FOLDER    JSON or JSONL, `messages` of `role` and `content`, `images` a list of paths
    parquet:GLOB                   rows with `messages` or `conversations`, images in the column `image` or `images`, as bytes in the file
    hf:NAME[:CONFIG]?split=train   the same columns of a data set of the Hub, or of a folder that `datasets` reads
    scenes?count=1000&turns=all    questions about drawn scenes, with no file at all: one of each scene, or all and where things are

`weight=W` in any of them: how often it is drawn in a mixture. Rows are read when they are asked for: of a JSONL file only the offsets of its lines are kept.
With `stream=true` a table is read as it arrives (recipes/conversation_stream.py).
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from recipes.conversations import (
    BadRow,
    Conversation,
    decoded,
    embedded_image,
    images_of,
    read_conversation,
    read_messages,
    scene_conversation,
)
from recipes.scene_turns import Turns, scene_turns
from vision_core.errors import UserError
from vision_core.images.regular_files import first_line
from vision_core.images.scenes import draw_scene
from vision_core.randomness import numpy_generator

OPTIONS = {
    "llava": {"images", "weight"},
    "messages": {"images", "weight"},
    "parquet": {"stream", "shuffle_buffer", "weight"},
    "hf": {"split", "revision", "stream", "shuffle_buffer", "weight"},
    "scenes": {"count", "size", "seed", "split", "turns", "weight"},
}


class ConversationSource(ABC):
    """Rows by number. weight: how often it is drawn in a mixture, relative to the others. read_aloud: answers begin with what was looked up for them."""

    name: str
    weight: float = 1.0
    read_aloud: bool = False

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def row(self, index: int) -> Mapping[str, Any]:
        """The row as its file has it, images undecoded."""

    @abstractmethod
    def image(self, row: Mapping[str, Any], number: int, where: str) -> Tensor:
        """Image `number` of a row, `[3, H, W]` uint8. Raises BadRow where it cannot be had."""

    def where(self, index: int) -> str:
        """File and row, counted from 1."""
        return f"{self.name}, row {index + 1}"

    def size_of(self, index: int) -> tuple[int, int]:
        """Characters and images of a row, whose images are not opened. Raises BadRow."""
        row = self.row(index)
        return sum(len(message.text) for message in read_messages(row, self.where(index))), len(images_of(row))

    def __getitem__(self, index: int) -> Conversation:
        """Raises BadRow for whatever is wrong with the row."""
        return read_conversation(self.row(index), self.where(index), self.image)


class JsonSource(ConversationSource):
    """A JSON list, or JSONL of which only the offsets of the lines are kept; images are files in a folder."""

    def __init__(self, file: Path, images: Path | None) -> None:
        self.name, self.file = str(file), file
        self.images = images if images is not None else file.parent
        if not file.is_file():
            raise UserError(f"{file} is not there; name a .json or .jsonl file of conversations")
        self.rows: list[Any] | None = None
        if file.suffix == ".json":
            self.rows = self._read_list()
        else:
            self.offsets, self.lines = self._line_offsets()

    def __len__(self) -> int:
        return len(self.offsets) if self.rows is None else len(self.rows)

    def where(self, index: int) -> str:
        return f"{self.file}, line {self.lines[index]}" if self.rows is None else f"{self.file}, row {index + 1}"

    def row(self, index: int) -> Mapping[str, Any]:
        if self.rows is not None:
            row = self.rows[index]
        else:
            with self.file.open("rb") as opened:
                opened.seek(self.offsets[index])
                row = self._parsed(opened.readline(), index)
        if not isinstance(row, Mapping):
            raise BadRow(f"{self.where(index)}: this is {type(row).__name__}, not an object")
        return row

    def image(self, row: Mapping[str, Any], number: int, where: str) -> Tensor:
        name = images_of(row)[number]
        if not isinstance(name, str):
            raise BadRow(f"{where}: image {number + 1} is {type(name).__name__}, not a path")
        path = (self.images / name).resolve()
        if not path.is_relative_to(self.images.resolve()):
            raise BadRow(f"{where}: {name} leads out of the image folder {self.images}; give paths inside it")
        try:
            return decoded(path.read_bytes(), f"{where}: {name}")
        except OSError as error:
            raise BadRow(f"{where}: {path} cannot be read ({error.strerror}); mend the path, or name another folder by images=") from None

    def _read_list(self) -> list[Any]:
        try:
            rows = json.loads(self.file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"{self.file} is no JSON ({error}); rows one to a line go into a .jsonl file") from None
        if not isinstance(rows, list):
            raise UserError(f"{self.file} holds {type(rows).__name__}, not a list of rows")
        return rows

    def _line_offsets(self) -> tuple[np.ndarray, np.ndarray]:
        """Where each line that is not blank begins, in bytes, and its number, from 1."""
        places, offset = [], 0
        with self.file.open("rb") as opened:
            for number, line in enumerate(opened, 1):
                if line.strip():
                    places.append((offset, number))
                offset += len(line)
        return tuple(np.array(places, dtype=np.int64).reshape(-1, 2).T)

    def _parsed(self, line: bytes, index: int) -> Any:
        try:
            return json.loads(line)
        except ValueError as error:
            raise BadRow(f"{self.where(index)}: no JSON ({error}); mend the line") from None


class TableSource(ConversationSource):
    """A table of `datasets`: parquet files, a data set of the Hub, a folder. Images are structs of bytes, or decoded by `datasets`."""

    def __init__(self, name: str, table: Any) -> None:
        from datasets import Image as ImageFeature
        from datasets import List

        self.name = name
        for column in ("image", "images"):
            feature = table.features.get(column)
            if isinstance(feature, ImageFeature):
                table = table.cast_column(column, ImageFeature(decode=False))
            elif isinstance(feature, List) and isinstance(feature.feature, ImageFeature):
                table = table.cast_column(column, List(ImageFeature(decode=False)))
        self.table = table

    def __len__(self) -> int:
        return len(self.table)

    def row(self, index: int) -> Mapping[str, Any]:
        return self.table[index]

    def image(self, row: Mapping[str, Any], number: int, where: str) -> Tensor:
        return embedded_image(row, number, where)


class SceneConversations(ConversationSource):
    """Questions about drawn scenes, one scene to a conversation."""

    read_aloud = True

    def __init__(self, count: int, size: int, seed: int, split: str, turns: Turns) -> None:
        self.name, self.count, self.size, self.seed, self.split, self.turns = f"scenes ({split})", count, size, seed, split, turns

    def __len__(self) -> int:
        return self.count

    def row(self, index: int) -> Mapping[str, Any]:
        raise NotImplementedError  # a scene is no row of a file

    def size_of(self, index: int) -> tuple[int, int]:
        return 0, 1  # all are alike

    def image(self, row: Mapping[str, Any], number: int, where: str) -> Tensor:
        raise NotImplementedError

    def __getitem__(self, index: int) -> Conversation:
        scene = draw_scene(self.seed, index, self.size, self.split)
        asked = scene_turns(scene, index, self.turns, numpy_generator("scene turns", self.seed, self.split, index))
        return scene_conversation(self.where(index), scene, asked)


def open_conversations(text: str) -> ConversationSource:
    """The source that `text` names; see the module. Raises UserError for what cannot be opened."""
    kind, where, options = parse_source(text)
    if is_stream(text):
        raise UserError(f"{text!r} is a stream, of which nobody can ask for a row by its number or for their count; leave out stream=true")
    if kind in ("llava", "messages"):
        source: ConversationSource = JsonSource(Path(where), Path(options["images"]) if "images" in options else None)
    elif kind == "scenes":
        numbers = {
            name: whole_number(text, name, options.get(name, default))
            for name, default in (("count", "1000"), ("size", "64"), ("seed", "0"))
        }
        split = options.get("split", "train")
        if split not in ("train", "held_out"):
            raise UserError(f"{text!r}: there is no split {split!r} of scenes; use train or held_out")
        turns = options.get("turns", "one")
        if turns not in ("one", "all"):
            raise UserError(f"{text!r}: turns={turns} is neither one nor all")
        source = SceneConversations(numbers["count"], numbers["size"], numbers["seed"], split, turns)
    else:
        source = TableSource(text, open_table(kind, where, options))
    source.weight = weight_of(text, options)
    if not len(source):
        raise UserError(f"{text} has no rows")
    return source


def parse_source(text: str, known: Mapping[str, set[str]] = OPTIONS, what: str = "conversations") -> tuple[str, str, dict[str, str]]:
    """(kind, where, options). known: the names of options by kind. Raises UserError for another kind or option."""
    head, _, tail = text.partition("?")
    kind, colon, where = head.partition(":")
    if kind not in known or (kind != "scenes" and not where):
        raise UserError(f"{text!r} names no {what}; write KIND:WHERE with a kind of {', '.join(known)}")
    options = dict(item.partition("=")[::2] for item in tail.split("&")) if tail else {}
    unknown = sorted(set(options) - known[kind])
    if unknown:
        raise UserError(f"{text!r}: unknown option {unknown[0]!r}; options of {kind}: {', '.join(sorted(known[kind])) or 'none'}")
    return kind, where, options


def is_stream(text: str) -> bool:
    """Whether a source is to be read as it arrives. Raises UserError for options that contradict each other."""
    options = parse_source(text)[2]
    asked = options.get("stream", "false")
    if asked not in ("true", "false"):
        raise UserError(f"{text!r}: stream={asked} is neither true nor false")
    if asked == "false" and "shuffle_buffer" in options:
        raise UserError(f"{text!r}: shuffle_buffer is of streams, all others are shuffled whole; leave it out, or add stream=true")
    return asked == "true"


def open_table(kind: str, where: str, options: Mapping[str, str], streaming: bool = False) -> Any:
    """The `datasets.Dataset`, or `IterableDataset`, of a parquet or hf source. Raises UserError."""
    import datasets

    try:
        if kind == "parquet":
            return datasets.load_dataset("parquet", data_files=where, split="train", streaming=streaming)
        name, _, config = where.partition(":")
        split, revision = options.get("split", "train"), options.get("revision")
        return datasets.load_dataset(name, config or None, split=split, revision=revision, streaming=streaming)
    except Exception as error:  # a missing file, name or split raises whatever its reader does
        raise UserError(f"{kind}:{where} cannot be opened ({first_line(error)})") from None


def whole_number(text: str, name: str, value: str) -> int:
    """The value of option `name` of the source `text`. Raises UserError."""
    if not re.fullmatch(r"\d+", value):
        raise UserError(f"{text!r}: {name}={value} is no whole number")
    return int(value)


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
