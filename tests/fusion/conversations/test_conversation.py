"""Values in messages are short and printable, whatever a row holds."""

from fusion.conversations.conversation import one_line, quote
from tests.fusion.conversations.row_helpers import LONG


def test_values_in_messages_are_short_and_printable():
    assert one_line("a cat") == "a cat" and one_line("a\nb\x00") == r"a\nb\x00" and one_line("ü") == "ü"
    assert one_line(LONG) == "A" * 200 + "… (50,000 characters)" and quote(b"abc") == "3 bytes"
    deep = []
    for _ in range(100_000):
        deep = [deep]
    for value in (LONG, [LONG] * 1000, {LONG: LONG}, deep, "\x00" * 500, "\ud800" * 300):
        assert len(quote(value)) < 300 and quote(value).isprintable()
    while deep:  # freed from outside in, or the interpreter runs out of stack
        deep = deep[0]
