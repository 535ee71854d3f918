"""Tables in Markdown whose cells hold whatever strangers wrote: names of files, classes, options."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vision_core.printable import printable


def table(header: Sequence[Any], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table: a line of names, a line that Markdown asks for, and a line for each row."""
    lines = [_line(header), _line(["---"] * len(header)), *map(_line, rows)]
    return "\n".join(lines)


def table_of_records(records: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table of records, which map the names of columns to values.

    The columns stand in the order in which the records name them first. A record that lacks a
    column has an empty cell there.
    """
    columns: dict[str, None] = {}
    for record in records:
        columns |= dict.fromkeys(record)
    rows = []
    for record in records:
        rows.append([record.get(name, "") for name in columns])
    return table(list(columns), rows)


def cell(value: Any) -> str:
    """A value as the text of a cell: a float with four significant digits, anything else on one
    line, and `|` escaped, which would end the cell."""
    text = f"{value:.4g}" if isinstance(value, float) else one_line(str(value))
    return printable(text).replace("|", "\\|")


def one_line(text: str) -> str:
    """A text with its line breaks, and all other white space, as single spaces."""
    return " ".join(text.split())


def _line(values: Iterable[Any]) -> str:
    return "| " + " | ".join(map(cell, values)) + " |"
