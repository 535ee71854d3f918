"""Read the headers of a plain tar file one after the other, each checked against the file: POSIX
ustar and pax, GNU tar.

Python's `tarfile` reads a pax header or a long name in full, however large it says it is, calls
itself for each of them, and takes a damaged header for the end of the archive. Here the sizes that
a header states are bounded, and whatever does not fit is an error with its place.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

BLOCK = 512
# the limit for a long name or for pax records; a path on Linux has at most 4,096 bytes
MOST_NAME_BYTES = 2**20
# types of members (POSIX.1-2017 pax, and GNU tar's letters)
FILES = (b"0", b"\0", b"7")
WITHOUT_CONTENT = (b"1", b"2", b"3", b"4", b"5", b"6")  # links, devices, folders, pipes
FOLDER = b"5"
GNU_SPARSE = b"S"
GNU_LONG_NAME = b"L"
GNU_LONG_LINK = b"K"
PAX = b"x"
PAX_SOLARIS = b"X"
PAX_GLOBAL = b"g"
EXTENDED = (PAX, PAX_SOLARIS, PAX_GLOBAL, GNU_LONG_NAME, GNU_LONG_LINK)
PAX_SPARSE = "GNU.sparse."
# places in a header
NAME = slice(0, 100)
SIZE = slice(124, 136)
CHECKSUM = slice(148, 156)
TYPE = slice(156, 157)
MAGIC = slice(257, 263)
POSIX_MAGIC = b"ustar\0"
PREFIX = slice(345, 500)
# places of the mark that the map of a sparse file continues: in the header, and in the blocks after
MAP_CONTINUES = 482
MAP_CONTINUES_AGAIN = 504
# first bytes of numbers that do not fit into octal digits
POSITIVE = 0x80
NEGATIVE = 0xFF
LONGEST_SIZE_DIGITS = 19
COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "Zstandard",
    b"PK\x03\x04": "zip",
}


class TarError(ValueError):
    """A tar file is damaged or of another kind; the message says how."""


class DamagedHeader(TarError):
    """The block at byte `place` should be a header and is not."""

    def __init__(self, place: int) -> None:
        super().__init__(f"no header at byte {place:,}")
        self.place = place


class Header(NamedTuple):
    """A member: its name, the offset and number of its bytes, and its type. The methods are named
    as in `tarfile.TarInfo`."""

    name: str
    offset: int
    size: int
    kind: bytes
    is_sparse: bool

    def isreg(self) -> bool:
        """Whether it is a file, and not a link, folder or device."""
        return self.kind in FILES

    def issparse(self) -> bool:
        """Whether its bytes are parts of the content with a map, and not the content itself."""
        return self.is_sparse


def read_headers(file: BinaryIO, size: int) -> Iterator[Header]:
    """Give the members of a tar file of `size` bytes. Raises TarError."""
    place = 0
    for_all: dict[str, str] = {}
    for_next: dict[str, str] = {}
    while (block := _read_block(file, place)) is not None:
        kind = block[TYPE]
        length = _number(block[SIZE], place)
        content = place + BLOCK
        if kind in EXTENDED:
            found = _extended(kind, _read_bounded(file, content, length, size), place)
            records = for_all if kind == PAX_GLOBAL else for_next
            records.update(found)
        else:
            header = _member(file, block, place, {**for_all, **for_next})
            content = header.offset
            length = _content_bytes(header)
            for_next = {}
            if header.offset + _padded(length) > size:
                raise TarError(
                    f"unexpected end of data in member {header.name[:80]!r}, which has {length:,} bytes"
                )
            yield header
        place = content + _padded(length)


def _padded(length: int) -> int:
    """The bytes that content takes in the file, where it fills whole blocks."""
    return -(-length // BLOCK) * BLOCK


def _read_block(file: BinaryIO, place: int) -> bytes | None:
    """Read the header at `place`; None at the end, which is a block of zeros or the file's end."""
    file.seek(place)
    block = file.read(BLOCK)
    if place and not block.strip(b"\0"):
        return None
    if len(block) < BLOCK or not _has_its_checksum(block):
        raise DamagedHeader(place) if place else TarError(_why_no_tar(block))
    return block


def _why_no_tar(block: bytes) -> str:
    if not block:
        return "it is empty"
    for magic, name in COMPRESSED.items():
        if block.startswith(magic):
            return f"it is compressed by {name}"
    return "it does not begin with a header"


def _has_its_checksum(block: bytes) -> bool:
    """Whether the checksum of a header is the sum of its bytes, with blanks in the checksum's
    place; some writers summed bytes as numbers with a sign."""
    text = block[CHECKSUM].strip(b"\0 ")
    try:
        expected = int(text, 8)
    except ValueError:
        return False
    rest = block[: CHECKSUM.start] + b" " * 8 + block[CHECKSUM.stop :]
    unsigned = sum(rest)
    return expected in (unsigned, unsigned - 256 * sum(byte > 127 for byte in rest))


def _number(field: bytes, place: int) -> int:
    value = -1
    if field[0] == POSITIVE:
        value = int.from_bytes(field[1:], "big")
    elif field[0] != NEGATIVE:
        text = field.split(b"\0")[0].strip()
        if set(text) <= set(b"01234567"):
            value = int(text or b"0", 8)
    if value < 0:
        raise TarError(f"the header at byte {place:,} has a size that is not possible")
    return value


def _read_bounded(file: BinaryIO, start: int, length: int, size: int) -> bytes:
    """Read a long name or pax records."""
    if length > MOST_NAME_BYTES:
        raise TarError(f"the name of the member at byte {start - BLOCK:,} has {length:,} bytes")
    if start + length > size:
        raise TarError(f"unexpected end of data in the name of the member at byte {start - BLOCK:,}")
    file.seek(start)
    return file.read(length)


def _extended(kind: bytes, content: bytes, place: int) -> dict[str, str]:
    """The facts of an extended header about the next member, under the keys of pax."""
    if kind == GNU_LONG_LINK:
        return {}
    if kind == GNU_LONG_NAME:
        return {"path": _text(content.split(b"\0")[0])}
    found = {}
    while content.strip(b"\0"):
        digits, blank, _ = content.partition(b" ")
        length = int(digits) if digits.isdigit() and len(digits) < 8 else 0
        fits = length <= len(content)
        record = content[:length]
        key, equals, value = record[len(digits) + len(blank) :].partition(b"=")
        if not (fits and blank and equals and record.endswith(b"\n")):
            raise TarError(f"the records of pax at byte {place:,} have lengths that do not fit")
        found[_text(key)] = _text(value[:-1])
        content = content[length:]
    return found


def _member(file: BinaryIO, block: bytes, place: int, extended: dict[str, str]) -> Header:
    """The member of a header; `extended` holds what pax and GNU tar wrote about it before."""
    name = extended.get(f"{PAX_SPARSE}name") or extended.get("path") or _name_in(block)
    kind = block[TYPE]
    length = _number(block[SIZE], place)
    if "size" in extended:
        length = _size_of_pax(extended["size"], place)
    content = place + BLOCK
    if kind == GNU_SPARSE:
        content = _end_of_map(file, block, content, name)
    if kind == FOLDER:
        name = name.rstrip("/")
    is_sparse = kind == GNU_SPARSE or any(key.startswith(PAX_SPARSE) for key in extended)
    return Header(name, content, length, kind, is_sparse)


def _name_in(block: bytes) -> str:
    name = _text(block[NAME].split(b"\0")[0])
    prefix = _text(block[PREFIX].split(b"\0")[0]) if block[MAGIC] == POSIX_MAGIC else ""
    return f"{prefix}/{name}" if prefix else name


def _end_of_map(file: BinaryIO, block: bytes, place: int, name: str) -> int:
    """Where the blocks end that continue the map of a sparse member."""
    continues = block[MAP_CONTINUES]
    while continues:
        file.seek(place)
        more = file.read(BLOCK)
        if len(more) < BLOCK:
            raise TarError(f"unexpected end of data in the map of sparse member {name[:80]!r}")
        continues = more[MAP_CONTINUES_AGAIN]
        place += BLOCK
    return place


def _size_of_pax(text: str, place: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= LONGEST_SIZE_DIGITS):
        raise TarError(f"the header at byte {place:,} has a size that is not possible")
    return int(text)


def _content_bytes(header: Header) -> int:
    """How many bytes lie behind a header; links, folders and devices have none, whatever their
    header says."""
    is_folder = header.kind == b"\0" and header.name.endswith("/")  # as tar wrote them before POSIX
    return 0 if header.kind in WITHOUT_CONTENT or is_folder else header.size


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")
