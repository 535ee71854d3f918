"""Rows as the tests of rows, turns and placeholders write them, and how they are read or refused."""

import pytest

from fusion.conversations.conversation import BadRow
from fusion.conversations.rows import Columns, read_row

ASKED, SAID = {"role": "user", "content": "what?"}, {"role": "assistant", "content": "that"}
TURNS = [ASKED, SAID]
LONG = "A" * 50_000  # as much base64


def read(row, **columns):
    return read_row(row, "rows.json, row 7", Columns(**columns))


def spoken(row, **columns):
    return [(message.role, message.text) for message in read(row, **columns).messages]


def refusal(row, **columns):
    """The message of a row that is refused: one printable line that names the place."""
    with pytest.raises(BadRow) as caught:
        read(row, **columns)
    message = str(caught.value)
    assert message.startswith("rows.json, row 7: ") and message.isprintable() and len(message) < 1000
    return message


def with_answer(**keys):
    return {"messages": [ASKED, {**SAID, **keys}]}


def with_question(text, **keys):
    return {"messages": [{"role": "user", "content": text}, SAID], **keys}


def parts(*given, **keys):
    return {"messages": [{"role": "user", "content": list(given)}, SAID], **keys}
