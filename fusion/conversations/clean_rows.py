"""Writes the good rows of a source, unchanged, to a file of their own."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from fusion.conversations.sources import ConversationSource, JsonSource, TableSource
from vision_core.errors import UserError


def check_target(file: Path, source: ConversationSource) -> None:
    """Raises UserError where the good rows of `source` cannot be written to `file`.

    It is called before the rows are read, which may take hours.
    """
    if not isinstance(source, JsonSource | TableSource):
        raise UserError(f"--write_clean: {source.name} has no rows in a file; leave --write_clean out")
    suffix = ".jsonl" if isinstance(source, JsonSource) else ".parquet"
    if file.suffix != suffix:
        raise UserError(f"--write_clean {file}: the rows of {source.name} go into a {suffix} file; name one")
    _refuse_existing(file)
    if not file.parent.is_dir():
        raise UserError(f"--write_clean {file}: there is no folder {file.parent}; make it first")


def write_rows(file: Path, source: ConversationSource, rows: Sequence[int]) -> None:
    """Write the rows of these numbers. Raises UserError.

    The file gets its name once all of it is on the disk.
    """
    aside = file.parent / f".tmp-{os.getpid()}-{file.name}"
    try:
        _write_to(aside, source, rows)
        with aside.open("rb+") as opened:
            os.fsync(opened.fileno())
        _refuse_existing(file)  # again: reading took long, and somebody else may have written it
        aside.rename(file)
    except OSError as error:
        reason = error.strerror or str(error)
        cure = "make room, or name another file"
        raise UserError(f"--write_clean {file} was not written ({reason}); {cure}") from None
    finally:
        aside.unlink(missing_ok=True)


def _write_to(path: Path, source: ConversationSource, rows: Sequence[int]) -> None:
    if isinstance(source, JsonSource):
        with path.open("wb") as opened:
            for row in rows:
                opened.write(source.line(row) + b"\n")
    else:
        assert isinstance(source, TableSource)
        source.table.select(rows).to_parquet(str(path))


def _refuse_existing(file: Path) -> None:
    if file.exists() or file.is_symlink():
        raise UserError(f"--write_clean {file} is there already, and is not overwritten; name a new file")
