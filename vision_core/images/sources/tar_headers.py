"""The headers of a plain tar file, one after the other, each checked against the file: POSIX ustar
and pax, GNU tar.

Python's `tarfile` reads a header of pax or a long name whole, however large it says it is, calls itself for each of them, and takes a damaged header
for the end of the archive. Here what a header promises is bounded, and whatever does not fit is an error with its place.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

BLOCK = 512
# of a long name or the records of pax; a path on Linux has 4,096 at most
MOST_NAME_BYTES = 2**20
# types of members (POSIX.1-2017 pax, and GNU tar's letters)
FILES = (b"0", b"\0", b"7")
WITHOUT_CONTENT = (b"1", b"2", b"3", b"4", b"5", b"6")  # links, devices, folders, pipes
FOLDER = b"5"
GNU_SPARSE, GNU_LONG_NAME, GNU_LONG_LINK = b"S", b"L", b"K"
PAX, PAX_SOLARIS, PAX_OF_ALL = b"x", b"X", b"g"
PAX_SPARSE = "GNU.sparse."
# places in a header, and in the blocks that go on with the map of a sparse file
NAME, SIZE, CHECKSUM, TYPE, PREFIX = (
    slice(0, 100),
    slice(124, 136),
    slice(148, 156),
    slice(156, 157),
    slice(345, 500),
)
MAGIC, POSIX_MAGIC = slice(257, 263), b"ustar\0"
MAP_GOES_ON, MAP_GOES_ON_AGAIN = 482, 504
# numbers that do not fit into octal digits
POSITIVE, NEGATIVE = 0x80, 0xFF
COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "Zstandard",
    b"PK\x03\x04": "zip",
}


class TarError(ValueError):
    """What is wrong with a tar file, in words."""


class DamagedHeader(TarError):
    """A block that is no header where one should be, at byte `place`."""

    def __init__(self, place: int) -> None:
        super().__init__(f"no header at byte {place:,}")
        self.place = place


class Header(NamedTuple):
    """A member: its name, where its bytes lie, their number, and what it is. The questions are
    named as in `tarfile.TarInfo`."""

    name: str
    offset: int
    size: int
    kind: bytes
    is_sparse: bool

    def isreg(self) -> bool:
        """Whether it is a file, and no link, folder or device."""
        return self.kind in FILES

    def issparse(self) -> bool:
        """Whether its bytes are not the content as it is, but parts of it and a map."""
        return self.is_sparse


def read_headers(file: BinaryIO, size: int) -> Iterator[Header]:
    """The members of a tar file of `size` bytes. Raises TarError."""
    place, of_all, of_next = 0, {}, {}
    while (block := _block(file, place)) is not None:
        kind, length = block[TYPE], _number(block[SIZE], place)
        content = place + BLOCK
        if kind in (PAX, PAX_SOLARIS, PAX_OF_ALL, GNU_LONG_NAME, GNU_LONG_LINK):
            found = _extended(kind, _bounded(file, content, length, size), place)
            (of_all if kind == PAX_OF_ALL else of_next).update(found)
        else:
            header, content = _member(file, block, place, {**of_all, **of_next})
            length, of_next = _content_bytes(header), {}
            if header.offset + _padded(length) > size:
                raise TarError(
                    f"unexpected end of data in member {header.name[:80]!r}, which has {length:,} bytes"
                )
            yield header
        place = content + _padded(length)


def _padded(length: int) -> int:
    """Content fills whole blocks."""
    return -(-length // BLOCK) * BLOCK


def _block(file: BinaryIO, place: int) -> bytes | None:
    """The header at `place`, or None at the end: a block of zeros, or that of the file."""
    file.seek(place)
    block = file.read(BLOCK)
    if place and not block.strip(b"\0"):
        return None
    if len(block) < BLOCK or not _has_its_checksum(block):
        raise TarError(_why_no_tar(block)) if not place else DamagedHeader(place)
    return block


def _why_no_tar(block: bytes) -> str:
    if not block:
        return "it is empty"
    found = next((name for magic, name in COMPRESSED.items() if block.startswith(magic)), None)
    return f"it is compressed by {found}" if found else "it does not begin with a header"


def _has_its_checksum(block: bytes) -> bool:
    """The sum of a header's bytes, its own place taken as blanks; some writers took bytes for
    numbers with a sign."""
    text = block[CHECKSUM].strip(b"\0 ")
    try:
        expected = int(text, 8)
    except ValueError:
        return False
    rest = block[: CHECKSUM.start] + b" " * 8 + block[CHECKSUM.stop :]
    unsigned = sum(rest)
    return expected in (unsigned, unsigned - 256 * sum(byte > 127 for byte in rest))


def _number(field: bytes, place: int) -> int:
    if field[0] in (POSITIVE, NEGATIVE):
        value = int.from_bytes(field[1:], "big") if field[0] == POSITIVE else -1
    else:
        text = field.split(b"\0")[0].strip()
        value = int(text or b"0", 8) if set(text) <= set(b"01234567") else -1
    if value < 0:
        raise TarError(f"the header at byte {place:,} has a size that is not possible")
    return value


def _bounded(file: BinaryIO, start: int, length: int, size: int) -> bytes:
    """What a long name or the records of pax are."""
    if length > MOST_NAME_BYTES:
        raise TarError(f"the name of the member at byte {start - BLOCK:,} has {length:,} bytes")
    if start + length > size:
        raise TarError(f"unexpected end of data in the name of the member at byte {start - BLOCK:,}")
    file.seek(start)
    return file.read(length)


def _extended(kind: bytes, content: bytes, place: int) -> dict[str, str]:
    """What such a header says of the next member, in the words of pax."""
    if kind == GNU_LONG_LINK:
        return {}
    if kind == GNU_LONG_NAME:
        return {"path": _text(content.split(b"\0")[0])}
    found = {}
    while content.strip(b"\0"):
        digits, blank, _ = content.partition(b" ")
        length = int(digits) if digits.isdigit() and len(digits) < 8 else 0
        record, fits = content[:length], length <= len(content)
        key, equals, value = record[len(digits) + len(blank) :].partition(b"=")
        if not (fits and blank and equals and record.endswith(b"\n")):
            raise TarError(f"the records of pax at byte {place:,} have lengths that do not fit")
        found[_text(key)] = _text(value[:-1])
        content = content[length:]
    return found


def _member(file: BinaryIO, block: bytes, place: int, extended: dict[str, str]) -> tuple[Header, int]:
    """The member of a header, and where its content begins."""
    name = _text(block[NAME].split(b"\0")[0])
    prefix = _text(block[PREFIX].split(b"\0")[0]) if block[MAGIC] == POSIX_MAGIC else ""
    name = (
        extended.get(f"{PAX_SPARSE}name") or extended.get("path") or (f"{prefix}/{name}" if prefix else name)
    )
    kind, length = block[TYPE], _number(block[SIZE], place)
    if "size" in extended:
        length = _size_of_pax(extended["size"], place)
    content = place + BLOCK
    goes_on = kind == GNU_SPARSE and block[MAP_GOES_ON]
    while goes_on:
        file.seek(content)
        more = file.read(BLOCK)
        if len(more) < BLOCK:
            raise TarError(f"unexpected end of data in the map of sparse member {name[:80]!r}")
        goes_on, content = more[MAP_GOES_ON_AGAIN], content + BLOCK
    name = name.rstrip("/") if kind == FOLDER else name
    is_sparse = kind == GNU_SPARSE or any(key.startswith(PAX_SPARSE) for key in extended)
    return Header(name, content, length, kind, is_sparse), content


def _size_of_pax(text: str, place: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise TarError(f"the header at byte {place:,} has a size that is not possible")
    return int(text)


def _content_bytes(header: Header) -> int:
    """How many bytes lie behind a header; links, folders and devices have none, whatever they
    say."""
    is_folder = header.kind == b"\0" and header.name.endswith("/")  # as tar wrote them before POSIX
    return 0 if header.kind in WITHOUT_CONTENT or is_folder else header.size


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")
