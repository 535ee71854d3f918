"""Read text, JSON and YAML that others wrote, of a bounded size and depth, and refuse bad files in
one line."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable
from typing import Any, BinaryIO

import yaml

from vision_core.errors import UserError, first_line
from vision_core.files.regular_files import open_regular_file, read_regular_file
from vision_core.printable import shortened
from vision_core.unreadable import UnreadableImage

MAX_TEXT_BYTES = 64 * 2**20
MAX_YAML_BYTES = 256 * 2**10
SHOWN_OF_A_NUMBER = 24
DIGITS_OF_63_BITS = 20  # with the sign
MAX_DEPTH = 100  # of brackets within brackets; the formats that are read here have ten
MAX_YAML_VALUES = 10_000  # an alias counts as all that it stands for

Refusal = Callable[[str], Exception]


class UnreadableText(UserError):
    """A file that is missing, is no regular file, is too large, or holds no text."""


def read_bytes(
    path: str | os.PathLike, name: str, cure: str, *roots: str, most_bytes: int = MAX_TEXT_BYTES
) -> bytes:
    """The bytes of a regular file; `roots` as for `read_regular_file`. name, cure: how a message
    begins and ends.

    Raises:
        UnreadableText: what is wrong, in words.
    """
    try:
        return read_regular_file(path, *roots, most_bytes=most_bytes)
    except UnreadableImage as error:
        raise UnreadableText(
            f"{name} cannot be read: {_in_words(error.reason, path, most_bytes)}; {cure}"
        ) from None


def read_text(
    path: str | os.PathLike, name: str, cure: str, encoding: str = "utf-8", most_bytes: int = MAX_TEXT_BYTES
) -> str:
    """The text of a regular file. Raises UnreadableText."""
    try:
        return read_bytes(path, name, cure, most_bytes=most_bytes).decode(encoding)
    except UnicodeDecodeError as error:
        raise UnreadableText(
            f"{name} cannot be read: it is not text in UTF-8 (byte {error.start:,}); {cure}"
        ) from None


def open_bytes(path: str | os.PathLike, name: str, cure: str) -> BinaryIO:
    """A regular file, open for reading, for one that is read in parts. Raises UnreadableText."""
    try:
        return open_regular_file(path)
    except UnreadableImage as error:
        raise UnreadableText(f"{name} cannot be read: {_in_words(error.reason, path, 0)}; {cure}") from None


def check_openable(path: str | os.PathLike, name: str, cure: str) -> None:
    """Raise UnreadableText for what is no regular file: for a library that opens the path
    itself."""
    open_bytes(path, name, cure).close()


def parse_json(
    text: str | bytes,
    name: str,
    cure: str,
    refusal: Refusal = UserError,
    finite: bool = False,
    most_depth: int | None = MAX_DEPTH,
    pairs: Callable[[list[tuple[str, Any]]], Any] | None = None,
) -> Any:
    """The value of a JSON text, its lists and objects at most `most_depth` deep, or as deep as
    Python reads them.

    finite: whether numbers that are none are refused: NaN and Infinity, which are no JSON though
    Python reads them, 1e999, and whole numbers of more than 63 bits. pairs: makes an object of its
    keys and values, a dict by default. Raises what `refusal` makes of a line.
    """
    try:
        value = json.loads(text, object_pairs_hook=pairs, **(FINITE if finite else {}))
    except UserError:
        raise
    except RecursionError:
        raise refusal(f"{name}: the JSON is nested too deeply, as no JSON of data is; {cure}") from None
    except ValueError as error:
        raise refusal(f"{name}: no JSON ({first_line(error)}); {cure}") from None
    if most_depth is not None and is_deep(value, most_depth):
        raise refusal(f"{name}: the JSON is nested too deeply, more than {most_depth} fold; {cure}")
    return value


def is_deep(value: Any, most: int = MAX_DEPTH) -> bool:
    """Whether lists and dicts stand in each other more than `most` deep, found without
    recursion."""
    level: list[Any] = [value]
    for _ in range(most):
        below: list[Any] = []
        for parent in level:
            below += [child for child in _children(parent) if isinstance(child, dict | list)]
        if not below:
            return False
        level = below
    return True


def yaml_node(text: str, name: str, cure: str = "mend the file") -> yaml.Node | None:
    """The node of a YAML text, None where it is empty; nothing is constructed, no tag followed.
    Raises UserError."""
    return _read_yaml(text, name, cure, yaml.compose)


def yaml_value(text: str, name: str, cure: str = "mend the file") -> Any:
    """The value of a YAML text, of plain types alone. Raises UserError."""
    return _read_yaml(text, name, cure, yaml.load)


def _read_yaml(text: str, name: str, cure: str, read: Callable[..., Any]) -> Any:
    try:
        _bound_yaml(yaml.parse(text, Loader=yaml.SafeLoader), name, cure)
        return read(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise UserError(f"{name} is not valid YAML: {' '.join(str(error).split())}; {cure}") from None
    except (
        ValueError,
        RecursionError,
    ) as error:  # a date without such a day, a number of five thousand digits
        if isinstance(error, UserError):
            raise
        raise UserError(f"{name} is not valid YAML: {first_line(error)}; {cure}") from None


def _bound_yaml(events: Iterable[yaml.Event], name: str, cure: str) -> None:
    """Count depth and values from the events, which come one by one and build nothing."""
    anchored: dict[str, int] = {}
    opened: list[
        tuple[str | None, int]
    ] = []  # (anchor, values before it) of each list and mapping that is open
    count = 0
    for event in events:
        if isinstance(event, yaml.CollectionStartEvent):
            opened.append((event.anchor, count))
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = opened.pop()
            _note(anchored, anchor, count - before + 1)
        elif isinstance(event, yaml.AliasEvent):
            count += anchored.get(event.anchor, 0)
        elif isinstance(event, yaml.ScalarEvent):
            _note(anchored, event.anchor, 1)
        count += isinstance(event, yaml.NodeEvent)
        if len(opened) > MAX_DEPTH:
            raise UserError(
                f"{name} is nested too deeply, more than {MAX_DEPTH} fold in line {event.start_mark.line + 1}; {cure}"
            )
        if count > MAX_YAML_VALUES:
            raise UserError(
                f"{name} holds more than {MAX_YAML_VALUES:,} values, what its aliases stand for counted; {cure}"
            )


def _note(anchored: dict[str, int], anchor: str | None, count: int) -> None:
    if anchor is not None:
        anchored[anchor] = count


def _children(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def _refuse_constant(word: str) -> None:
    raise ValueError(f"{word} is no number of JSON")


def _finite_number(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{shortened(text, SHOWN_OF_A_NUMBER)} is no number that a computer holds")
    return number


def _whole_number(text: str) -> int:
    if len(text) > DIGITS_OF_63_BITS or not -(2**63) <= int(text) < 2**63:
        raise ValueError(f"{shortened(text, SHOWN_OF_A_NUMBER)} has more than 63 bits")
    return int(text)


FINITE = {"parse_constant": _refuse_constant, "parse_float": _finite_number, "parse_int": _whole_number}


def _in_words(reason: str, path: str | os.PathLike, most_bytes: int) -> str:
    if reason == "missing":
        return "No such file or directory"
    if reason == "not_a_regular_file":
        return (
            "it is a folder"
            if os.path.isdir(path)
            else "it is a pipe, a socket or a device, not a regular file"
        )
    if reason == "file_too_large":
        return f"it has more than {most_bytes:,} bytes"
    if reason == "outside_the_data_folder":
        return "it leads out of its folder"
    return _why_not_opened(path)


def _why_not_opened(path: str | os.PathLike) -> str:
    try:
        os.stat(path)
    except OSError as error:
        return error.strerror or "it cannot be opened"
    except ValueError:
        return "its path holds a NUL character or is no text"
    return "it cannot be opened; its permissions may not allow it"
