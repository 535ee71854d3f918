"""Several conversations in one row, each seeing itself alone."""

from __future__ import annotations

from collections.abc import Sequence


def pack_rows(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Which samples share a row of `capacity` tokens: the longest first, each into the first row
    that has room (first-fit decreasing; it needs at most 11/9 of the fewest rows possible, Johnson
    1973). Raises ValueError for a sample that fits in no row."""
    if max(lengths, default=0) > capacity:
        raise ValueError(f"a sample of {max(lengths)} tokens does not fit into a row of {capacity}")
    rows: list[list[int]] = []
    room: list[int] = []
    for sample in sorted(range(len(lengths)), key=lambda each: -lengths[each]):
        row = next((number for number, free in enumerate(room) if free >= lengths[sample]), len(rows))
        if row == len(rows):
            rows.append([])
            room.append(capacity)
        rows[row].append(sample)
        room[row] -= lengths[sample]
    return rows
