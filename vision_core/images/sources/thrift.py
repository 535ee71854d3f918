"""Read Thrift's compact protocol, in which parquet writes its footer. A struct becomes a dict from
field numbers to values; fields that are not written are not in it."""

from __future__ import annotations

from typing import Any

# types of the protocol (thrift/doc/specs/thrift-compact-protocol.md in apache/thrift)
TRUE, FALSE, BYTE, I16, I32, I64, DOUBLE, BINARY, LIST, SET, MAP, STRUCT, UUID = range(1, 14)
STOP = 0
DOUBLE_BYTES = 8
UUID_BYTES = 16
MOST_DEPTH = 32
LONGEST_NUMBER = 10  # bytes of a number of 64 bits
LONG_LIST = 15  # the length follows as a number of its own


class ThriftError(ValueError):
    """The bytes are not a struct of the compact protocol."""


def read_struct(data: bytes) -> dict[int, Any]:
    """Read the struct with which `data` begins: numbers, bytes, lists, and structs as dicts. Raises
    ThriftError."""
    try:
        return _Reader(data).struct(MOST_DEPTH)
    except IndexError:
        raise ThriftError("ends too early") from None


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.place = 0

    def struct(self, depth: int) -> dict[int, Any]:
        fields: dict[int, Any] = {}
        number = 0
        while (head := self.byte()) != STOP:
            step = head >> 4
            kind = head & 0x0F
            number = number + step if step else self.signed()
            if kind in (TRUE, FALSE):
                fields[number] = kind == TRUE  # the type of a field is its truth value
            else:
                fields[number] = self.value(kind, depth)
        return fields

    def value(self, kind: int, depth: int) -> Any:
        if kind in (I16, I32, I64):
            return self.signed()
        if kind == BINARY:
            return self.bytes(self.unsigned())
        if kind == STRUCT and depth:
            return self.struct(depth - 1)
        if kind in (LIST, SET) and depth:
            return self.list(depth - 1)
        if kind in (TRUE, FALSE, BYTE):
            return self.byte()
        if kind == DOUBLE:
            return self.bytes(DOUBLE_BYTES)
        if kind == MAP and depth:
            return self.map(depth - 1)
        if kind == UUID:
            return self.bytes(UUID_BYTES)
        raise ThriftError("holds something else than a table" if depth else "is nested too deeply")

    def list(self, depth: int) -> list[Any]:
        head = self.byte()
        length = head >> 4
        kind = head & 0x0F
        if length == LONG_LIST:
            length = self.unsigned()
        return [self.value(kind, depth) for _ in range(self.length(length))]

    def map(self, depth: int) -> list[tuple[Any, Any]]:
        length = self.length(self.unsigned())
        kinds = self.byte() if length else 0
        return [(self.value(kinds >> 4, depth), self.value(kinds & 0x0F, depth)) for _ in range(length)]

    def length(self, count: int) -> int:
        """Check that the data can hold `count` items, each of at least one byte."""
        if count > len(self.data) - self.place:
            raise ThriftError("ends too early")
        return count

    def byte(self) -> int:
        value = self.data[self.place]
        self.place += 1
        return value

    def bytes(self, count: int) -> bytes:
        start = self.place
        self.place += self.length(count)
        return self.data[start : self.place]

    def signed(self) -> int:
        """Read a number with a sign, which is written in zigzag: 0, -1, 1, -2, ..."""
        value = self.unsigned()
        return (value >> 1) ^ -(value & 1)

    def unsigned(self) -> int:
        value = 0
        for shift in range(0, 7 * LONGEST_NUMBER, 7):
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
        raise ThriftError("has a number that is too long")
