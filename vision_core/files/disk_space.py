"""Check that a disk has room before something large is written, and report a write that failed."""

from __future__ import annotations

import shutil
from pathlib import Path

from vision_core.errors import UserError


def free_bytes(folder: Path) -> int:
    """Free for this user on the file system of `folder`, which need not be there yet."""
    return shutil.disk_usage(next(place for place in (folder, *folder.parents) if place.exists())).free


def check_room(folder: Path, needed: int, what: str, cure: str) -> str:
    """What will be written and what is free, in words. Raises UserError, with `cure`, where it does
    not fit."""
    free = free_bytes(folder)
    space = f"{in_words(needed)}, and {in_words(free)} are free"
    if needed > free:
        raise UserError(f"{folder} has no room for {what}: they need {space}; {cure}")
    return f"{folder} gets {what}: they need {space}"


def not_written(path: Path, error: OSError, needed: int, cure: str) -> UserError:
    """The one line of a file that could not be written."""
    space = f"{in_words(needed)}, and {in_words(free_bytes(path.parent))} are free"
    return UserError(f"{path} was not written: {error.strerror or error}; it needs {space}; {cure}")


def in_words(number_of_bytes: int) -> str:
    """In MB, as other messages have it, and in GB where there are many."""
    return (
        f"{number_of_bytes / 1e9:,.1f} GB" if number_of_bytes >= 1e10 else f"{number_of_bytes / 1e6:.1f} MB"
    )
