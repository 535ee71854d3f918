"""Decides which samples share a row of a packed batch."""

from __future__ import annotations

from collections.abc import Sequence


def pack_rows(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """The samples of each row of `capacity` tokens, by first-fit decreasing.

    The longest sample comes first, and each goes into the first row that has room. This needs at most
    11/9 of the fewest rows possible (Johnson 1973). Raises ValueError for a sample that fits in no
    row.
    """
    longest = max(lengths, default=0)
    if longest > capacity:
        raise ValueError(f"a sample of {longest} tokens does not fit into a row of {capacity}")
    rows: list[list[int]] = []
    room: list[int] = []
    longest_first = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)
    for sample in longest_first:
        row = _first_with_room(room, lengths[sample])
        if row == len(rows):
            rows.append([])
            room.append(capacity)
        rows[row].append(sample)
        room[row] -= lengths[sample]
    return rows


def _first_with_room(room: Sequence[int], length: int) -> int:
    """The first row that has room for `length` tokens, or the number of a new row."""
    for row, free in enumerate(room):
        if free >= length:
            return row
    return len(room)
