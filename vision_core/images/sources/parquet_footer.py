"""Check the footer of a parquet file against the file before pyarrow reads anything by it.

pyarrow (seen in 26.0) ends the process where it is asked for a column of a footer whose statistics
do not fit, and makes room for what a footer promises. The footer is Thrift's compact protocol; the
numbers of fields are those of `parquet.thrift` in apache/parquet-format.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

from vision_core.errors import UserError
from vision_core.files.regular_files import open_regular_file
from vision_core.images.sources.thrift import ThriftError, read_struct
from vision_core.unreadable import UnreadableImage

MAGIC = b"PAR1"
ENCRYPTED_MAGIC = b"PARE"
TAIL_BYTES = 8  # the footer's length, and the mark
MOST_FOOTER_BYTES = 256 * 2**20
# a column that unpacks to more than this, and to so many times its bytes, holds no images
MOST_UNPACKED_BYTES = 2**29
MOST_TIMES_PACKED = 100
# a table of images has fewer rows to a byte of its columns
MOST_ROWS_A_BYTE = 1024
CURE = "copy it again, or write it anew"

# numbers of the fields of FileMetaData
SCHEMA = 2
ROWS = 3
ROW_GROUPS = 4
# of SchemaElement, and two values of its field REPETITION
REPETITION = 3
CHILDREN = 5
REQUIRED = 0
REPEATED = 2
# of RowGroup
COLUMNS = 1
GROUP_ROWS = 3
# of ColumnChunk
OTHER_FILE = 1
COLUMN = 3
ENCRYPTED = 8
# of ColumnMetaData
PATH = 3
VALUES = 5
UNPACKED = 6
PACKED = 7
DATA_PAGE = 9
DICTIONARY_PAGE = 11
SIZE_STATISTICS = 16
# of SizeStatistics
REPETITION_HISTOGRAM = 2
DEFINITION_HISTOGRAM = 3


class Leaf(NamedTuple):
    """A column as it is stored: how many levels above it may repeat, and how many may be missing or
    repeat."""

    most_repetition: int
    most_definition: int


class Chunk(NamedTuple):
    """A column of a row group: its name with dots, and the number of bytes that it unpacks to."""

    path: str
    unpacked: int


class Group(NamedTuple):
    """A row group: its number of rows, and its columns."""

    rows: int
    chunks: tuple[Chunk, ...]

    def unpacked(self, path: str) -> int:
        """The number of bytes that the column `path` unpacks to."""
        return sum(chunk.unpacked for chunk in self.chunks if chunk.path == path)


def check_footers(pattern: str) -> None:
    """Read the footers of all files on disk that a pattern matches, or that end in .parquet below a
    folder, before a library opens the files by itself.

    Raises UserError for the first footer that is damaged.
    """
    if os.path.isdir(pattern):
        pattern = os.path.join(glob.escape(pattern), "**", "*.parquet")
    for path in sorted(glob.glob(pattern, recursive=True)):
        read_footer(path)


def read_footer(path: str) -> list[Group]:
    """Read the row groups of a file and check that the footer agrees with itself and with the file.

    Raises UserError for a file that is not a parquet file, is truncated or encrypted, or has counts,
    places or sizes that are not possible.
    """
    try:
        with open_regular_file(path) as file:
            size = os.fstat(file.fileno()).st_size
            footer = read_struct(_footer_bytes(file, path, size))
        return _groups(footer, size)
    except UnreadableImage as error:
        raise UserError(f"{path} cannot be read ({error.reason}); give a parquet file") from None
    except ThriftError as error:
        raise UserError(f"{path} is not a readable parquet file: its footer {error}; {CURE}") from None


def _footer_bytes(file, path: str, size: int) -> bytes:
    head = file.read(len(MAGIC))
    if head != MAGIC and head != ENCRYPTED_MAGIC:
        raise UserError(
            f"{path} is not a readable parquet file: it does not begin as one; "
            "give the files of the data, or write them anew"
        )
    file.seek(max(size - TAIL_BYTES, 0))
    tail = file.read(TAIL_BYTES)
    if ENCRYPTED_MAGIC in (head, tail[4:]):
        raise UserError(
            f"{path} is not a readable parquet file: its footer is encrypted; "
            "write the table without encryption"
        )
    if tail[4:] != MAGIC:
        raise UserError(
            f"{path} is not a readable parquet file: its end is missing; copy or download it again"
        )
    length = int.from_bytes(tail[:4], "little")
    if not 0 < length <= min(size - TAIL_BYTES - len(MAGIC), MOST_FOOTER_BYTES):
        raise ThriftError(f"has {length:,} bytes of a file of {size:,}")
    file.seek(size - TAIL_BYTES - length)
    return file.read(length)


def _groups(footer: dict[int, Any], size: int) -> list[Group]:
    leaves = list(_leaves(_structs(footer, SCHEMA)))
    groups = []
    for number, group in enumerate(_structs(footer, ROW_GROUPS)):
        groups.append(_group(group, number, leaves, size))
    rows = _number(footer, ROWS)
    rows_of_groups = sum(group.rows for group in groups)
    if rows != rows_of_groups:
        raise ThriftError(f"counts {rows:,} rows, and its row groups {rows_of_groups:,}")
    return groups


def _leaves(elements: list[dict[int, Any]]) -> Iterator[Leaf]:
    """The columns as they are stored, from the schema, which is a tree written from the root
    downwards."""
    if not elements:
        raise ThriftError("has no schema")
    # for each open group: how many of its children are still to come, and its two levels
    open_groups = [[_number(elements[0], CHILDREN, 0), 0, 0]]
    for element in elements[1:]:
        while open_groups and not open_groups[-1][0]:
            open_groups.pop()
        if not open_groups:
            raise ThriftError("has a schema with columns of no group")
        parent = open_groups[-1]
        parent[0] -= 1
        repetition = _number(element, REPETITION, REQUIRED)
        leaf = Leaf(
            most_repetition=parent[1] + (repetition == REPEATED),
            most_definition=parent[2] + (repetition != REQUIRED),
        )
        children = _number(element, CHILDREN, 0)
        if children:
            open_groups.append([children, *leaf])
        else:
            yield leaf
    if any(group[0] for group in open_groups):
        raise ThriftError("has a schema that lacks columns")


def _group(group: dict[int, Any], number: int, leaves: list[Leaf], size: int) -> Group:
    rows = _number(group, GROUP_ROWS)
    columns = _structs(group, COLUMNS)
    if len(columns) != len(leaves):
        raise ThriftError(
            f"has {len(leaves)} columns in its schema, and {len(columns)} in row group {number}"
        )
    chunks = []
    for column, leaf in zip(columns, leaves, strict=True):
        chunks.append(_chunk(column, leaf, rows, f"row group {number}", size))
    if rows > MOST_ROWS_A_BYTE * sum(chunk.unpacked for chunk in chunks):
        raise ThriftError(f"counts {rows:,} rows in row group {number}, which has no bytes for them")
    return Group(rows, tuple(chunks))


def _chunk(column: dict[int, Any], leaf: Leaf, rows: int, where: str, size: int) -> Chunk:
    if column.get(ENCRYPTED) is not None:
        raise ThriftError("has encrypted columns")
    if column.get(OTHER_FILE) is not None:
        raise ThriftError("names another file for its columns")
    facts = column.get(COLUMN)
    if not isinstance(facts, dict):
        raise ThriftError(f"does not say where the columns of {where} are")
    path = _name(facts)
    where = f"column {path[:60]!r} of {where}"
    _check_sizes(facts, leaf, rows, where, size)
    _check_histograms(facts.get(SIZE_STATISTICS), leaf, where)
    return Chunk(path, _number(facts, UNPACKED))


def _check_sizes(facts: dict[int, Any], leaf: Leaf, rows: int, where: str, size: int) -> None:
    """Raise ThriftError where a column's place, counts or sizes are not possible in the file."""
    values = _number(facts, VALUES)
    packed = _number(facts, PACKED)
    unpacked = _number(facts, UNPACKED)
    pages = _number(facts, DATA_PAGE)
    start = min(pages, _number(facts, DICTIONARY_PAGE, 0) or pages)
    if values and not len(MAGIC) <= start <= pages <= start + packed <= size - TAIL_BYTES:
        raise ThriftError(
            f"has {where} at byte {pages:,} with {packed:,} bytes, outside of the file of {size:,}"
        )
    if values < rows or (values != rows and not leaf.most_repetition):
        raise ThriftError(f"counts {values:,} values in {where}, which has {rows:,} rows")
    if unpacked > MOST_UNPACKED_BYTES and unpacked > MOST_TIMES_PACKED * packed:
        raise ThriftError(f"has {where}, which unpacks from {packed:,} bytes to {unpacked:,}")


def _check_histograms(statistics: Any, leaf: Leaf, where: str) -> None:
    """Raise ThriftError for statistics that do not fit their column; pyarrow ends the process for
    them."""
    if not isinstance(statistics, dict):
        return
    most_levels = {
        REPETITION_HISTOGRAM: leaf.most_repetition,
        DEFINITION_HISTOGRAM: leaf.most_definition,
    }
    for field, most in most_levels.items():
        histogram = statistics.get(field, [])
        if not isinstance(histogram, list) or len(histogram) not in (0, most + 1):
            raise ThriftError(f"has statistics of {where} that are not its own")


def _name(facts: dict[int, Any]) -> str:
    parts = facts.get(PATH)
    if not isinstance(parts, list) or not all(isinstance(part, bytes) for part in parts):
        raise ThriftError("has a column without a name")
    return b".".join(parts).decode("utf-8", "replace")


def _number(struct: dict[int, Any], field: int, otherwise: int | None = None) -> int:
    """A count, a size or a place, which is never negative."""
    value = struct.get(field, otherwise)
    if isinstance(value, int) and value >= 0:
        return value
    found = value if isinstance(value, int) else "none"
    raise ThriftError(f"lacks a number, or has one that is not possible ({found})")


def _structs(struct: dict[int, Any], field: int) -> list[dict[int, Any]]:
    value = struct.get(field, [])
    if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
        raise ThriftError("holds something else than a table")
    return value
