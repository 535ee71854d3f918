"""Find the webdataset shards that a text names, and where each member of a tar file lies."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from itertools import chain, product
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
    """Where a member's bytes lie. `refused` is the reason why they are not read, or None."""

    shard: int
    key: str
    field: str
    offset: int
    size: int
    refused: str | None


class Shard(NamedTuple):
    """The members of a shard that have a key and a field, in their order, and the number of files
    of macOS that were passed over."""

    members: list[Member]
    of_macos: int


def shards_named(pattern: str) -> list[str]:
    """List the shards that a text names, as webdataset reads it: several joined by `::`, and braces
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
    """Expand braces as bash does, and the package braceexpand for webdataset: `{000..120}`,
    `{0..8..2}`, `{a..c}`, `{train,val-{1..3}}`, also several or nested ones. Braces without a range
    or a comma are kept.

    Raises UserError where a brace is not closed, or where there would be more than a million texts.
    """
    parts: list[list[str]] = []
    count = 1
    for piece in _split_at_braces(text):
        parts.append(_expand_piece(piece))
        count *= len(parts[-1])
        if count > MAX_SHARDS:
            raise UserError(
                f"wds:{text} names more than {MAX_SHARDS:,} shards; look at the numbers in its braces"
            )
    return ["".join(chosen) for chosen in product(*parts)]


def _split_at_braces(text: str) -> Iterator[str]:
    """Split a text into outermost braces with what they hold, and the texts between them."""
    depth = 0
    start = 0
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


def _expand_piece(piece: str) -> list[str]:
    """The texts that a piece of `_split_at_braces` expands to."""
    if not (piece.startswith("{") and piece.endswith("}")):
        return [piece]
    inner = piece[1:-1]
    numbers = NUMBERS.fullmatch(inner)
    if numbers:
        return _expand_numbers(*numbers.groups())
    letters = LETTERS.fullmatch(inner)
    if letters:
        codes = _inclusive_range(ord(letters[1]), ord(letters[2]), letters[3])
        return list(filter(str.isalpha, map(chr, codes)))
    items = list(_split_at_commas(inner))
    if len(items) == 1:
        return ["{" + expanded + "}" for expanded in expand_braces(inner)]
    return list(chain.from_iterable(map(expand_braces, items)))


def _expand_numbers(first: str, last: str, step: str | None) -> list[str]:
    """The numbers of a range; a zero in front of either end pads all of them to one width."""
    is_padded = any(re.match(r"-?0\d", number) for number in (first, last))
    width = max(len(first), len(last)) if is_padded else 0
    return [f"{number:0{width}d}" for number in _inclusive_range(int(first), int(last), step)]


def _inclusive_range(first: int, last: int, step: str | None) -> range:
    stride = int(step or 1) or 1
    if abs(last - first) // stride >= MAX_SHARDS:
        raise UserError(
            f"wds: {{{first}..{last}}} names more than {MAX_SHARDS:,} shards; "
            "look at the numbers in its braces"
        )
    if first <= last:
        return range(first, last + 1, stride)
    return range(first, last - 1, -stride)


def _split_at_commas(inner: str) -> Iterator[str]:
    """Split at the commas that are not inside inner braces."""
    depth = 0
    start = 0
    for place, character in enumerate(inner):
        depth += (character == "{") - (character == "}")
        if character == "," and depth == 0:
            yield inner[start:place]
            start = place + 1
    yield inner[start:]


def read_shard(number: int, path: str) -> Shard:
    """Read the headers of a plain tar file once. Raises UserError for a file that is damaged or of
    another kind."""
    members: list[Member] = []
    of_macos = 0
    try:
        with open_regular_file(path) as file:
            size = os.fstat(file.fileno()).st_size
            for count, header in enumerate(read_headers(file, size)):
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
    """Split a member's name into key and field; the field is in lower case, and empty where there
    is none.

    The field begins after the first dot of the last part of the path, as webdataset has it, unless
    it would hold a part that begins with a digit: `a.seg.png` is the field `seg.png` of `a`, but
    `22.05.png` is the field `png` of `22.05`.
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
    """Read a member's bytes by their offset. Raises UnreadableImage."""
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
    """Whether macOS wrote this file beside another one of the archive: `._a.jpg` ends like a
    picture and is not one."""
    return name.rpartition("/")[2].startswith("._")


def _refusal(info: Header) -> str | None:
    if not info.isreg() or info.issparse():
        return "not_a_regular_file"
    return "file_too_large" if info.size > MAX_FILE_BYTES else None
