"""Keep one JSON object a line in a file, so that a kill or a full disk never leaves half an
object."""

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vision_core.files.text_files import read_bytes
from vision_core.runs import checkpoints

MAX_BYTES = 16 * 2**30


class JsonLines:
    """A file of one JSON object per line. A full disk delays lines until a later call and never
    leaves half of one."""

    def __init__(self, path: Path, warn: Callable[[str], None]) -> None:
        self.path = path
        self._warn = warn
        self._waiting: list[str] = []

    def append(self, record: dict[str, Any]) -> None:
        """Add one object, whole or not yet."""
        self._waiting.append(json.dumps(_plain(record), allow_nan=False) + "\n")
        try:
            self._write_waiting()
        except OSError as error:
            if len(self._waiting) == 1:
                self._warn(
                    f"{self.path} cannot be written ({error.strerror}); lines wait in memory until it can"
                )

    def sync(self) -> None:
        """Write what waits, and bring all lines to the disk. Raises OSError."""
        if self._waiting:
            self._write_waiting()
        if self.path.exists():
            checkpoints.sync(self.path)

    def _write_waiting(self) -> None:
        _append_whole(self.path, "".join(self._waiting).encode())
        self._waiting.clear()

    def read(self) -> list[dict[str, Any]]:
        """Every whole object in the file; other lines (a write cut by a power loss) are reported
        and left out."""
        lines = self._text().splitlines()
        records = [record for record in map(_object_or_none, lines) if record is not None]
        if len(records) < len(lines):
            self._warn(f"{self.path}: {len(lines) - len(records)} broken line(s) left out")
        return records

    def _text(self) -> str:
        if not self.path.exists():
            return ""
        data = read_bytes(self.path, str(self.path), "take it out of the run's folder", most_bytes=MAX_BYTES)
        return data.decode("utf-8", errors="replace")

    def move_others(self, wanted: Callable[[dict[str, Any]], bool], others: Path) -> None:
        """Rewrite the file with the wanted objects, atomically; all other lines are added to the
        file `others` before. Raises OSError."""
        lines = self._text().splitlines()
        kept = []
        moved = []
        broken = 0
        for line in lines:
            record = _object_or_none(line)
            broken += record is None
            (kept if record is not None and wanted(record) else moved).append(line + "\n")
        if broken:
            self._warn(f"{self.path}: {broken} broken line(s) moved to {others.name}")
        if moved:
            _append_whole(others, "".join(moved).encode())
            checkpoints.sync(others)
            checkpoints.write_text_atomically(self.path, "".join(kept))


def _append_whole(path: Path, data: bytes) -> None:
    """Append all of `data` or nothing. A line that a dead process left without its end is ended
    first."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        size = os.lseek(descriptor, 0, os.SEEK_END)
        if size and os.pread(descriptor, 1, size - 1) != b"\n":
            data = b"\n" + data
        try:
            while data:
                data = data[os.write(descriptor, data) :]
        except OSError:
            os.ftruncate(descriptor, size)
            raise
    finally:
        os.close(descriptor)


def _object_or_none(line: str) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def _plain(value: Any) -> Any:
    """What JSON can hold: numbers of NumPy and torch become Python's, non-finite ones text."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
