"""The good rows of a source as a file of its own, as they stand there: bad rows are left out,
nothing is changed."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from fusion.conversations.sources import ConversationSource, JsonSource, TableSource
from vision_core.errors import UserError


def check_target(file: Path, source: ConversationSource) -> None:
    """Raises UserError where the good rows of `source` cannot be written to `file`; asked before
    hours of reading."""
    if not isinstance(source, JsonSource | TableSource):
        raise UserError(f"--write_clean: {source.name} has no rows in a file; leave --write_clean out")
    suffix = ".jsonl" if isinstance(source, JsonSource) else ".parquet"
    if file.suffix != suffix:
        raise UserError(f"--write_clean {file}: the rows of {source.name} go into a {suffix} file; name one")
    _refuse_existing(file)
    if not file.parent.is_dir():
        raise UserError(f"--write_clean {file}: there is no folder {file.parent}; make it first")


def write_rows(file: Path, source: ConversationSource, rows: Sequence[int]) -> None:
    """Write the rows of these numbers. The file gets its name once all of it is on the disk. Raises
    UserError."""
    if isinstance(source, JsonSource):
        _write_aside(file, lambda aside: _write_lines(aside, source, rows))
    else:
        assert isinstance(source, TableSource)
        _write_aside(file, lambda aside: source.table.select(rows).to_parquet(str(aside)))


def _write_lines(aside: Path, source: JsonSource, rows: Sequence[int]) -> None:
    with aside.open("wb") as opened:
        for row in rows:
            opened.write(source.line(row) + b"\n")


def _write_aside(file: Path, write: Callable[[Path], object]) -> None:
    aside = file.parent / f".tmp-{os.getpid()}-{file.name}"
    try:
        write(aside)
        with aside.open("rb+") as opened:
            os.fsync(opened.fileno())
        _refuse_existing(file)  # again: reading took long, and somebody else may have written it
        aside.rename(file)
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(
            f"--write_clean {file} was not written ({reason}); make room, or name another file"
        ) from None
    finally:
        aside.unlink(missing_ok=True)


def _refuse_existing(file: Path) -> None:
    if file.exists() or file.is_symlink():
        raise UserError(f"--write_clean {file} is there already, and is not overwritten; name a new file")
