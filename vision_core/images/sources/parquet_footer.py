"""The footer of a parquet file, checked against the file before pyarrow reads anything by it.

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

MAGIC, ENCRYPTED_MAGIC = b"PAR1", b"PARE"
TAIL_BYTES = 8  # the footer's length, and the mark
MOST_FOOTER_BYTES = 256 * 2**20
# a column that unpacks to more than this, and to so many times its bytes, holds no images
MOST_UNPACKED_BYTES, MOST_TIMES_PACKED = 2**29, 100
# a table of images has fewer rows to a byte of its columns
MOST_ROWS_A_BYTE = 1024
CURE = "copy it again, or write it anew"

# fields of FileMetaData
SCHEMA, ROWS, ROW_GROUPS = 2, 3, 4
# of SchemaElement
REPETITION, CHILDREN = 3, 5
REQUIRED, REPEATED = 0, 2
# of RowGroup
COLUMNS, GROUP_ROWS = 1, 3
# of ColumnChunk
OTHER_FILE, COLUMN, ENCRYPTED = 1, 3, 8
# of ColumnMetaData
PATH, VALUES, UNPACKED, PACKED, DATA_PAGE, DICTIONARY_PAGE, SIZE_STATISTICS = 3, 5, 6, 7, 9, 11, 16
# of SizeStatistics
REPETITION_HISTOGRAM, DEFINITION_HISTOGRAM = 2, 3


class Leaf(NamedTuple):
    """A column as it is stored: how often its values may repeat and be missing on the way down to
    it."""

    most_repetition: int
    most_definition: int


class Chunk(NamedTuple):
    """A column of a row group: its name with dots, and the bytes that it unpacks to."""

    path: str
    unpacked: int


class Group(NamedTuple):
    """A row group."""

    rows: int
    chunks: tuple[Chunk, ...]

    def unpacked(self, path: str) -> int:
        """Bytes of the column `path`."""
        return sum(chunk.unpacked for chunk in self.chunks if chunk.path == path)


def check_footers(pattern: str) -> None:
    """Read the footers of all files that a pattern matches, or that end in .parquet below a folder;
    what lies elsewhere than on a disk is passed over.

    For libraries that open the files themselves. Raises UserError for the first that is damaged.
    """
    if os.path.isdir(pattern):
        pattern = os.path.join(glob.escape(pattern), "**", "*.parquet")
    for path in sorted(glob.glob(pattern, recursive=True)):
        read_footer(path)


def read_footer(path: str) -> list[Group]:
    """The row groups of a file whose footer agrees with itself and with the file.

    Raises UserError for a file that is no parquet file, truncated, encrypted, or of which counts,
    places or sizes are not possible.
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
            f"{path} is not a readable parquet file: it does not begin as one; give the files of the data, or write them anew"
        )
    file.seek(max(size - TAIL_BYTES, 0))
    tail = file.read(TAIL_BYTES)
    if ENCRYPTED_MAGIC in (head, tail[4:]):
        raise UserError(
            f"{path} is not a readable parquet file: its footer is encrypted; write the table without encryption"
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
    groups = [
        _group(group, number, leaves, size) for number, group in enumerate(_structs(footer, ROW_GROUPS))
    ]
    rows, of_groups = _number(footer, ROWS), sum(group.rows for group in groups)
    if rows != of_groups:
        raise ThriftError(f"counts {rows:,} rows, and its row groups {of_groups:,}")
    return groups


def _leaves(elements: list[dict[int, Any]]) -> Iterator[Leaf]:
    """The columns as they are stored, from the schema, which is a tree written from the root
    down."""
    if not elements:
        raise ThriftError("has no schema")
    # of each group that is open: how many of its children are to come, and its levels
    open_groups = [[_number(elements[0], CHILDREN, 0), 0, 0]]
    for element in elements[1:]:
        while open_groups and not open_groups[-1][0]:
            open_groups.pop()
        if not open_groups:
            raise ThriftError("has a schema with columns of no group")
        parent = open_groups[-1]
        parent[0] -= 1
        repetition = _number(element, REPETITION, REQUIRED)
        levels = parent[1] + (repetition == REPEATED), parent[2] + (repetition != REQUIRED)
        children = _number(element, CHILDREN, 0)
        if children:
            open_groups.append([children, *levels])
        else:
            yield Leaf(*levels)
    if any(group[0] for group in open_groups):
        raise ThriftError("has a schema that lacks columns")


def _group(group: dict[int, Any], number: int, leaves: list[Leaf], size: int) -> Group:
    rows, columns = _number(group, GROUP_ROWS), _structs(group, COLUMNS)
    if len(columns) != len(leaves):
        raise ThriftError(
            f"has {len(leaves)} columns in its schema, and {len(columns)} in row group {number}"
        )
    chunks = tuple(
        _chunk(column, leaf, rows, f"row group {number}", size)
        for column, leaf in zip(columns, leaves, strict=True)
    )
    if rows > MOST_ROWS_A_BYTE * sum(chunk.unpacked for chunk in chunks):
        raise ThriftError(f"counts {rows:,} rows in row group {number}, which has no bytes for them")
    return Group(rows, chunks)


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
    values, packed, unpacked = (_number(facts, field) for field in (VALUES, PACKED, UNPACKED))
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
    _check_histograms(facts.get(SIZE_STATISTICS), leaf, where)
    return Chunk(path, unpacked)


def _check_histograms(statistics: Any, leaf: Leaf, where: str) -> None:
    """Where pyarrow ends the process."""
    if not isinstance(statistics, dict):
        return
    for field, most in (
        (REPETITION_HISTOGRAM, leaf.most_repetition),
        (DEFINITION_HISTOGRAM, leaf.most_definition),
    ):
        histogram = statistics.get(field, [])
        if not isinstance(histogram, list) or len(histogram) not in (0, most + 1):
            raise ThriftError(f"has statistics of {where} that are not its own")


def _name(facts: dict[int, Any]) -> str:
    parts = facts.get(PATH)
    if not isinstance(parts, list) or not all(isinstance(part, bytes) for part in parts):
        raise ThriftError("has a column without a name")
    return b".".join(parts).decode("utf-8", "replace")


def _number(struct: dict[int, Any], field: int, otherwise: int | None = None) -> int:
    """A count, a size or a place, which is not negative."""
    value = struct.get(field, otherwise)
    if not isinstance(value, int) or value < 0:
        raise ThriftError(
            f"lacks a number, or has one that is not possible ({value if isinstance(value, int) else 'none'})"
        )
    return value


def _structs(struct: dict[int, Any], field: int) -> list[dict[int, Any]]:
    value = struct.get(field, [])
    if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
        raise ThriftError("holds something else than a table")
    return value
