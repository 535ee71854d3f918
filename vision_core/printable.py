"""Make text of others safe to print: without control characters that a terminal obeys, and short
enough for a line. This module imports nothing of this project.

Names of files, classes, rows and options come from strangers. An escape code in one would move the
cursor or change the window's title, a line break would write a line of its own, and a right-to-left
override would show another name than the file has.
"""

import re
import sys
from typing import TextIO

MOST_CHARACTERS = 300  # of the line of an error
LEAST_OF_A_VALUE = 24  # that is left of a long value while there is another way
MOST_OF_A_CURE = 110
CUT = "…"
# a quoted value with its spaces, or a word without any; what separates them is kept as it is
VALUES = re.compile(r"""('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|\S+)""")
BYTE_THAT_IS_NO_TEXT = range(0xDC80, 0xDD00)  # as Python carries it in a name (PEP 383)


def printable(text: object) -> str:
    r"""`text` on one line, with an escape such as `\x1b`, `\n` or `\u202e` for each character that
    is not shown as itself.

    Those are control characters, line and paragraph breaks, characters without a width, those that
    turn the direction of writing, and bytes of names that are no text in UTF-8.
    """
    text = str(text)
    return text if text.isprintable() else "".join(map(_shown, text))


def shortened(text: object, most: int) -> str:
    """`printable(text)` of at most `most` characters: a longer one loses its middle, so that the
    end of a path stays."""
    line = printable(text)
    if len(line) <= most:
        return line
    kept = most - len(CUT)
    return line[: (kept + 1) // 2] + CUT + line[len(line) - kept // 2 :]


def fitted(message: str, most: int = MOST_CHARACTERS) -> str:
    """A message `what, where; the cure` on one line of at most `most` characters: its longest
    values lose their middles first."""
    line = printable(message)
    if len(line) <= most:
        return line
    pieces = VALUES.split(line)
    line = "".join(shortened(piece, _longest_value(pieces, most)) for piece in pieces)
    if len(line) <= most:
        return line
    said, semicolon, cure = line.rpartition("; ")
    if not said or len(cure) > MOST_OF_A_CURE:
        return shortened(line, most)
    return shortened(said, most - len(semicolon) - len(cure)) + semicolon + cure


def say(text: object, file: TextIO | None = None) -> None:
    """Print a text with its own line breaks, each line printable, at once; on stdout unless `file`
    is given."""
    lines = printable_lines(text)
    stream = file or sys.stdout
    try:
        print(lines, file=stream, flush=True)
    except UnicodeEncodeError:  # a terminal of another encoding
        print(
            lines.encode(stream.encoding, "backslashreplace").decode(stream.encoding), file=stream, flush=True
        )


def printable_lines(text: object) -> str:
    """A text of several lines, each of them printable."""
    return "\n".join(map(printable, str(text).split("\n")))


def in_code(name: object) -> str:
    """A name as code in Markdown, which it cannot end."""
    return "`" + printable(name).replace("`", "'") + "`"


def _shown(character: str) -> str:
    if ord(character) in BYTE_THAT_IS_NO_TEXT:
        return f"\\x{ord(character) - 0xDC00:02x}"
    return repr(character)[1:-1] if not character.isprintable() else character


def _longest_value(pieces: list[str], most: int) -> int:
    """How many characters each value may have so that all fit, at least `LEAST_OF_A_VALUE`."""
    low = LEAST_OF_A_VALUE
    high = most
    while low < high:
        middle = (low + high + 1) // 2
        if sum(min(len(piece), middle) for piece in pieces) <= most:
            low = middle
        else:
            high = middle - 1
    return low
