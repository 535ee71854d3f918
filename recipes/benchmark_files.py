"""What the readers of benchmarks share: texts, tables, images; mistakes are told by file, row and cure."""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from recipes.conversations import BadRow, decoded
from recipes.vlm_letters import letters_of
from vision_core.errors import UserError

OWN_FILE = "is this the benchmark's own file?"
FETCH_AGAIN = "mend it, or fetch the file again"


def read_text(file: Path) -> str:
    """The text of a file in UTF-8, or in UTF-16 where its mark says so, without the mark. Raises UserError."""
    try:
        data = file.read_bytes()
        wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        return data.decode("utf-16" if wide else "utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} cannot be read ({error}); name the benchmark's own file") from None


def parsed(text: str, where: str, kind: type) -> Any:
    """The JSON value of a text, a dict or a list as `kind` says. Raises BadRow."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadRow(f"{where}: no JSON ({error}); {FETCH_AGAIN}") from None
    if not isinstance(value, kind):
        names = {dict: "an object", list: "a list"}
        found = names.get(type(value), repr(value))
        raise BadRow(f"{where}: the JSON should be {names[kind]}, not {found:.60}; {OWN_FILE}")
    return value


def json_lines(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, object) of each line. Raises UserError, BadRow."""
    lines = read_text(file).rstrip().split("\n")  # splitlines would also split within a text
    for number, line in enumerate(lines, start=1):
        where = f"{file}, line {number}"
        yield where, parsed(line, where, dict)


def table_rows(file: Path, delimiter: str, *columns: str) -> Iterator[tuple[str, dict[str, str]]]:
    """(place, fields by column) of each row of a CSV or TSV that has these columns. Raises UserError, BadRow."""
    csv.field_size_limit(2**31 - 1)  # images in base64
    reader = csv.DictReader(io.StringIO(read_text(file), newline=""), delimiter=delimiter, restkey="")
    try:
        header = [name.strip() for name in reader.fieldnames or []]
        reader.fieldnames = header
        rows = list(reader)
    except csv.Error as error:
        raise BadRow(f"{file}, line {reader.line_num}: no table ({error}); {FETCH_AGAIN}") from None
    missing = [name for name in columns if name not in header]
    if missing:
        raise UserError(f"{file} has the columns {', '.join(header) or 'none'}, and no {missing[0]!r}; {OWN_FILE}")
    for number, row in enumerate(rows, start=1):
        where = f"{file}, row {number}"
        if "" in row and "" not in header:
            raise BadRow(f"{where}: there are more fields than the {len(header)} columns; {FETCH_AGAIN}")
        yield where, row


def text_field(row: Any, name: str, where: str, cure: str = OWN_FILE) -> str:
    """A field that holds a text or a number. Raises BadRow."""
    value = row.get(name) if isinstance(row, Mapping) else None
    if value is None or value == "":
        raise BadRow(f"{where}: there is no {name!r}; {cure}")
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise BadRow(f"{where}: {name!r} is no text but {value!r:.60}; {cure}")
    return str(value)


def whole_number(row: Any, name: str, where: str) -> int:
    """A field that holds one. Raises BadRow."""
    text = text_field(row, name, where).strip()
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise BadRow(f"{where}: {name!r} is no whole number but {text!r:.60}; {FETCH_AGAIN}")
    return int(text)


def items_field(row: Any, name: str, where: str) -> list[Any]:
    """A field that holds a list with something in it. Raises BadRow."""
    value = row.get(name) if isinstance(row, Mapping) else None
    if not isinstance(value, list) or not value:
        raise BadRow(f"{where}: there is no list {name!r}; {OWN_FILE}")
    return value


def right_letter(answer: str, choices: Sequence[str], where: str) -> str:
    """The letter in "(b)" or "B". Raises BadRow where it names no choice."""
    letter = re.sub(r"[()\s]", "", answer).upper()
    known = letters_of(choices)
    if len(letter) != 1 or letter not in known:
        problem = f"the answer {answer!r:.60} is none of the letters {known or '(none)'} of its choices"
        raise BadRow(f"{where}: {problem}; {FETCH_AGAIN}")
    return letter


def file_image(folder: Path, name: str, where: str) -> Callable[[], list[Tensor]]:
    """Reads the image `name` below a folder. Raises BadRow, then and now."""
    path = (folder / name.replace("\0", "")).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise BadRow(f"{where}: {name} leads out of the image folder {folder}; {FETCH_AGAIN}")

    def read() -> list[Tensor]:
        try:
            return [decoded(path.read_bytes(), f"{where}: {name}")]
        except OSError as error:
            cure = "name the folder of the images by images="
            raise BadRow(f"{where}: {path} cannot be read ({error.strerror}); {cure}") from None

    return read
