"""Whether a TIFF is one page, from its header: a folder of many thousands is opened without reading
the files."""

import re
import struct
from typing import BinaryIO, NamedTuple

# versions: TIFF 6.0, and BigTIFF with wider numbers
CLASSIC = 42
BIG = 43
DESCRIPTION = 270
# MetaMorph's and Zeiss's stacks lie within one page
STACK_TAGS = {33628, 33629, 33630, 33631, 34412}
# ImageJ and tifffile write a stack's planes behind one page
STACK_BEHIND_A_PAGE = re.compile(
    r'^ImageJ=.*^images=(?!1\s)|^\{"shape".*"truncated": true', re.DOTALL | re.MULTILINE
)
MOST_ENTRIES = 4096
MOST_DESCRIPTION = 2**20


class Layout(NamedTuple):
    """How the directory of a page is written: as `struct` has the number of entries, an entry, and
    an offset."""

    count: struct.Struct
    entry: struct.Struct
    offset: struct.Struct


def has_one_page(file: BinaryIO) -> bool:
    """True where the header shows one page and no stack behind it; False where there may be more,
    or the header is damaged."""
    try:
        return _has_one_page(file)
    except (struct.error, ValueError, OverflowError):
        return False


def _has_one_page(file: BinaryIO) -> bool:
    head = file.read(16)
    order = "<" if head.startswith(b"II") else ">"
    version = struct.unpack_from(f"{order}H", head, 2)[0]
    layout = _layout(order, version)
    start = layout.offset.unpack_from(head, 4 if version == CLASSIC else 8)[0]
    entries, next_page = _directory(file, layout, start)
    if next_page or STACK_TAGS & {tag for tag, *_ in entries}:
        return False
    return not STACK_BEHIND_A_PAGE.search(_description(file, entries, layout))


def _layout(order: str, version: int) -> Layout:
    if version == CLASSIC:
        return Layout(struct.Struct(f"{order}H"), struct.Struct(f"{order}HHII"), struct.Struct(f"{order}I"))
    if version == BIG:
        return Layout(struct.Struct(f"{order}Q"), struct.Struct(f"{order}HHQQ"), struct.Struct(f"{order}Q"))
    raise ValueError(version)


def _directory(file: BinaryIO, layout: Layout, start: int) -> tuple[list[tuple[int, ...]], int]:
    """The entries (tag, type, count, value or offset) of the first page, and where the next page
    is, 0 for none."""
    file.seek(start)
    count = layout.count.unpack(file.read(layout.count.size))[0]
    if count > MOST_ENTRIES:
        raise ValueError(count)
    table = file.read(count * layout.entry.size)
    next_page = layout.offset.unpack(file.read(layout.offset.size))[0]
    return list(layout.entry.iter_unpack(table)), next_page


def _description(file: BinaryIO, entries: list[tuple[int, ...]], layout: Layout) -> str:
    """The page's ImageDescription, or nothing. A short one, which lies in the entry itself, says
    nothing of stacks and is passed over."""
    for tag, _, count, offset in entries:
        if tag == DESCRIPTION and count > layout.offset.size:
            file.seek(offset)
            return file.read(min(count, MOST_DESCRIPTION)).decode("latin-1")
    return ""
