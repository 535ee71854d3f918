"""Webdataset shards: which files a text names, and where each member of a tar file lies."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from itertools import product
from typing import NamedTuple

from vision_core.errors import UserError, first_line
from vision_core.files.regular_files import files_matching, open_regular_file
from vision_core.images.sources.tar_headers import DamagedHeader, Header, TarError, read_headers
from vision_core.unreadable import MAX_FILE_BYTES, UnreadableImage

MAX_MEMBERS = 1_000_000
MAX_SHARDS = 1_000_000
FIELD_PART = re.compile(r"[^\W\d][^\s.]*")  # begins with a letter or an underscore
NUMBERS = re.compile(r"(-?\d+)\.\.(-?\d+)(?:\.\.-?(\d+))?")
LETTERS = re.compile(r"([A-Za-z])\.\.([A-Za-z])(?:\.\.-?(\d+))?")


class Member(NamedTuple):
    """Where a member's bytes lie; `refused` is the reason why they are not read."""

    shard: int
    key: str
    field: str
    offset: int
    size: int
    refused: str | None


class Shard(NamedTuple):
    """The members of a shard that have a key and a field, in their order, and how many files of
    macOS were passed over."""

    members: list[Member]
    of_macos: int


def shards_named(pattern: str) -> list[str]:
    """The shards that a text names, as webdataset reads it: several joined by `::`, and braces
    `{000000..000003}` or `{a,b}`.

    Each of them may be a glob pattern or a folder. The order is that of the text, sorted within a
    pattern; a shard named twice comes once. Raises UserError where one of them matches nothing.
    """
    paths: dict[str, None] = {}
    for part in pattern.split("::"):
        for expanded in expand_braces(part):
            paths |= dict.fromkeys(files_matching("wds", expanded, ".tar"))
    return list(paths)


def expand_braces(text: str) -> list[str]:
    """The texts that bash makes of braces, as the package braceexpand does for webdataset:
    `{000..120}`, `{0..8..2}`, `{a..c}`, `{train,val-{1..3}}`, several of them, one in another.
    Braces that hold neither a range nor a comma stay.

    Raises UserError where a brace is not closed, or where there would be more than a million texts.
    """
    parts: list[list[str]] = []
    count = 1
    for piece in _pieces(text):
        parts.append(_choices(piece))
        count *= len(parts[-1])
        if count > MAX_SHARDS:
            raise UserError(
                f"wds:{text} names more than {MAX_SHARDS:,} shards; look at the numbers in its braces"
            )
    return ["".join(chosen) for chosen in product(*parts)]


def _pieces(text: str) -> Iterator[str]:
    """The text in pieces: what stands in outermost braces, with them, and what stands between
    them."""
    depth, start = 0, 0
    for place, character in enumerate(text):
        if character == "{":
            if depth == 0:
                yield text[start:place]
                start = place
            depth += 1
        elif character == "}" and depth:
            depth -= 1
            if depth == 0:
                yield text[start : place + 1]
                start = place + 1
    if depth:
        raise UserError(
            f"wds:{text}: a brace is not closed; write braces as {{000000..000099}} or {{train,val}}"
        )
    yield text[start:]


def _choices(piece: str) -> list[str]:
    """What a piece of `_pieces` stands for."""
    if not (piece.startswith("{") and piece.endswith("}")):
        return [piece]
    inner = piece[1:-1]
    if found := NUMBERS.fullmatch(inner):
        return _numbers(*found.groups())
    if found := LETTERS.fullmatch(inner):
        return [chr(code) for code in _range(ord(found[1]), ord(found[2]), found[3]) if chr(code).isalpha()]
    items = list(_items(inner))
    if len(items) == 1:
        return ["{" + expanded + "}" for expanded in expand_braces(inner)]
    return [expanded for item in items for expanded in expand_braces(item)]


def _numbers(first: str, last: str, step: str | None) -> list[str]:
    """A zero in front of a number pads all of them to one width."""
    is_padded = any(re.match(r"-?0\d", number) for number in (first, last))
    width = max(len(first), len(last)) if is_padded else 0
    return [f"{number:0{width}d}" for number in _range(int(first), int(last), step)]


def _range(first: int, last: int, step: str | None) -> range:
    stride = int(step or 1) or 1
    if abs(last - first) // stride >= MAX_SHARDS:
        raise UserError(
            f"wds: {{{first}..{last}}} names more than {MAX_SHARDS:,} shards; look at the numbers in its braces"
        )
    return range(first, last + 1, stride) if first <= last else range(first, last - 1, -stride)


def _items(inner: str) -> Iterator[str]:
    """What stands between the commas that are in no inner brace."""
    depth, start = 0, 0
    for place, character in enumerate(inner):
        depth += (character == "{") - (character == "}")
        if character == "," and depth == 0:
            yield inner[start:place]
            start = place + 1
    yield inner[start:]


def read_shard(number: int, path: str) -> Shard:
    """The headers of a plain tar file, each read once. Raises UserError for a file that is no such
    one, or is damaged."""
    members: list[Member] = []
    of_macos = 0
    try:
        with open_regular_file(path) as file:
            for count, header in enumerate(read_headers(file, os.fstat(file.fileno()).st_size)):
                if count >= MAX_MEMBERS:
                    raise UserError(f"{path} has more than {MAX_MEMBERS:,} members; write smaller shards")
                key, field = key_and_field(header.name)
                if _is_of_macos(header.name):
                    of_macos += 1
                elif field:
                    members.append(Member(number, key, field, header.offset, header.size, _refusal(header)))
    except DamagedHeader as error:
        raise UserError(f"{path} is damaged at byte {error.place:,}; copy or write the shard again") from None
    except (TarError, UnreadableImage, OSError) as error:
        raise UserError(
            f"{path} cannot be read as a plain .tar file: {first_line(error)}; gunzip or rewrite it"
        ) from None
    return Shard(members, of_macos)


def key_and_field(name: str) -> tuple[str, str]:
    """A member's name as key and field, the field in lower case and empty where there is none.

    The field begins behind the first dot of the last part of the path, as webdataset has it, unless
    what follows would hold a part that begins with a digit: `a.seg.png` is the field `seg.png` of
    `a`, but `22.05.png` the field `png` of `22.05`.
    """
    folder, slash, last = name.rpartition("/")
    stem, *parts = last.split(".")
    if not stem:
        return name, ""  # a hidden file
    fields: list[str] = []
    while parts and FIELD_PART.fullmatch(parts[-1]):
        fields.insert(0, parts.pop())
    return folder + slash + ".".join([stem, *parts]), ".".join(fields).lower()


def key_at_first_dot(key: str) -> str:
    """The key that webdataset itself would read."""
    folder, slash, last = key.rpartition("/")
    return folder + slash + last.partition(".")[0]


def read_member(path: str, member: Member) -> bytes:
    """A member's bytes, found by their offset. Raises UnreadableImage."""
    if member.refused:
        raise UnreadableImage(member.refused)
    try:
        with open_regular_file(path) as file:
            file.seek(member.offset)
            content = file.read(member.size)
    except OSError:
        raise UnreadableImage("cannot_be_opened") from None
    if len(content) < member.size:
        raise UnreadableImage("truncated")
    return content


def _is_of_macos(name: str) -> bool:
    """What macOS puts beside each file of an archive: `._a.jpg`, which ends like a picture and is
    none."""
    return name.rpartition("/")[2].startswith("._")


def _refusal(info: Header) -> str | None:
    if not info.isreg() or info.issparse():
        return "not_a_regular_file"
    return "file_too_large" if info.size > MAX_FILE_BYTES else None
