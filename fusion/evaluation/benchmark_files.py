"""What the readers of benchmarks share: reading texts, tables, fields and images of a file.

Every mistake in a file is a BadRow or UserError that names file, row and cure.
"""

from __future__ import annotations

import base64
import binascii
import codecs
import csv
import io
import os
import re
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from fusion.conversations.conversation import BadRow, decode_row_image
from fusion.evaluation.letters import letters_of
from fusion.evaluation.tasks import ImageReading
from vision_core.errors import UserError, first_line
from vision_core.files.regular_files import data_roots, is_inside, read_regular_file
from vision_core.files.text_files import parse_json, read_bytes
from vision_core.printable import shortened
from vision_core.unreadable import UnreadableImage

OWN_FILE = "is this the benchmark's own file?"
NAME_OWN_FILE = "name the benchmark's own file"
MOST_OF_A_FIELD = 60  # characters of a value in a message
MAX_BENCHMARK_BYTES = 16 * 2**30  # MMBench holds its images
FETCH_AGAIN = "mend it, or fetch the file again"


def read_text(file: Path) -> str:
    """The text of a file in UTF-8, or in UTF-16 where its byte order mark says so, without the mark.

    Raises UserError.
    """
    data = read_bytes(file, str(file), NAME_OWN_FILE, most_bytes=MAX_BENCHMARK_BYTES)
    wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return data.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{file} cannot be read ({first_line(error)}); {NAME_OWN_FILE}") from None


def parse_json_of_type(text: str, where: str, kind: type) -> Any:
    """The JSON value of a text, which must be a dict or a list as `kind` says. Raises BadRow."""
    value = parse_json(text, where, FETCH_AGAIN, BadRow)
    if not isinstance(value, kind):
        names = {dict: "an object", list: "a list"}
        found = names.get(type(value)) or quote_value(value)
        raise BadRow(f"{where}: the JSON should be {names[kind]}, not {found}; {OWN_FILE}")
    return value


def parse_json_lines(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (place, object) for each line of JSON. Raises UserError, BadRow."""
    lines = read_text(file).rstrip().split("\n")  # splitlines would also split within a text
    for number, line in enumerate(lines, start=1):
        where = f"{file}, line {number}"
        yield where, parse_json_of_type(line, where, dict)


def table_rows(file: Path, delimiter: str, *columns: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Yields (place, fields by column) for each row of a CSV or TSV that has these columns.

    Raises UserError, BadRow.
    """
    csv.field_size_limit(2**31 - 1)  # images in base64
    reader = csv.DictReader(io.StringIO(read_text(file), newline=""), delimiter=delimiter, restkey="")
    try:
        header = list(map(str.strip, reader.fieldnames or []))
        reader.fieldnames = header
        rows = list(reader)
    except csv.Error as error:
        raise BadRow(f"{file}, line {reader.line_num}: no table ({error}); {FETCH_AGAIN}") from None
    for name in columns:
        if name not in header:
            listed = ", ".join(header) or "none"
            raise UserError(f"{file} has the columns {listed}, and no {name!r}; {OWN_FILE}")
    for number, row in enumerate(rows, start=1):
        where = f"{file}, row {number}"
        if "" in row and "" not in header:
            raise BadRow(f"{where}: there are more fields than the {len(header)} columns; {FETCH_AGAIN}")
        yield where, row


def text_field(row: Any, name: str, where: str, cure: str = OWN_FILE) -> str:
    """The text or number in a field, as text. Raises BadRow."""
    value = row.get(name) if isinstance(row, Mapping) else None
    if value is None or value == "":
        raise BadRow(f"{where}: there is no {name!r}; {cure}")
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise BadRow(f"{where}: {name!r} is not a text but {quote_value(value)}; {cure}")
    return str(value)


def whole_number_field(row: Any, name: str, where: str) -> int:
    """The whole number in a field. Raises BadRow."""
    text = text_field(row, name, where).strip()
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise BadRow(f"{where}: {name!r} is not a whole number but {quote_value(text)}; {FETCH_AGAIN}")
    return int(text)


def items_field(row: Any, name: str, where: str) -> list[Any]:
    """The list in a field, which must not be empty. Raises BadRow."""
    value = row.get(name) if isinstance(row, Mapping) else None
    if not isinstance(value, list) or not value:
        raise BadRow(f"{where}: there is no list {name!r}; {OWN_FILE}")
    return value


def right_letter(answer: str, choices: Sequence[str], where: str) -> str:
    """The letter of an answer such as "(b)" or "B". Raises BadRow where no choice has it."""
    letter = re.sub(r"[()\s]", "", answer).upper()
    known = letters_of(choices)
    if len(letter) != 1 or letter not in known:
        problem = (
            f"the answer {quote_value(answer)} is none of the letters {known or '(none)'} of its choices"
        )
        raise BadRow(f"{where}: {problem}; {FETCH_AGAIN}")
    return letter


def file_image(folder: Path, name: str, where: str) -> ImageReading:
    """A function that reads the image `name` below a folder.

    Raises BadRow at once for a name that leads out of the folder, and when called for an image that
    cannot be read.
    """
    roots = data_roots(folder)
    path = os.path.join(folder, name)
    if _leads_out(path, roots):
        raise BadRow(f"{where}: {name} leads out of the image folder {folder}; {FETCH_AGAIN}")

    def read() -> list[Tensor]:
        try:
            data = read_regular_file(path, *roots)
        except UnreadableImage as error:
            problem = error.reason.replace("_", " ")
            cure = "name the folder of the images by images="
            raise BadRow(f"{where}: {path} cannot be read ({problem}); {cure}") from None
        return [decode_row_image(data, f"{where}: {name}")]

    return read


def base64_image(encoded: str, where: str) -> ImageReading:
    """A function that decodes an image in base64; it raises BadRow."""

    def read() -> list[Tensor]:
        try:
            data = base64.b64decode(encoded)
        except binascii.Error as error:
            raise BadRow(f"{where}: the image is not base64 ({error}); {FETCH_AGAIN}") from None
        return [decode_row_image(data, where)]

    return read


def _leads_out(path: str, roots: Sequence[str]) -> bool:
    try:
        real = os.path.realpath(path.replace("\0", ""))
    except ValueError:  # half a character cannot be in a file's name; reading the file says so
        return False
    return not any(is_inside(real, root) for root in roots)


def quote_value(value: Any) -> str:
    """A value of a row as Python writes it, cut to 60 characters however large or deep it is."""
    return shortened(reprlib.repr(value), MOST_OF_A_FIELD)
