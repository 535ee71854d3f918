"""Publish files that others read: each is put in its place by one rename, so that nobody ever reads
half of one."""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from vision_core.runs.checkpoints import (
    CheckpointNotWritten,
    begin_aside,
    folder_aside,
    is_write_error,
    make_readable,
    not_written,
    reason_of,
    remove,
    sync,
)

PUBLISHED = "published"  # in the name of the folder aside


@contextmanager
def published(folder: Path) -> Iterator[Path]:
    """`with published(folder) as aside:` what is written into `aside` stands in `folder`
    afterwards, the weights last; other files there stay.

    Call it from one process. Raises CheckpointNotWritten where the disk is full or the folder
    cannot be written; then what stood there before stands there still, file by file.
    """
    aside = folder_aside(folder, PUBLISHED, os.getpid())
    try:
        begin_aside(aside)
        yield aside
        put_in_place(aside, folder)
    except BaseException as error:
        line = _one_line(aside, folder, error)
        if line is None:
            raise
        raise line from error


@contextmanager
def published_whole(folder: Path) -> Iterator[Path]:
    """As `published`, for a folder that is not there, or empty: it appears with all that is in it,
    by one rename.

    What a killed call for the same folder has left beside it is removed.
    """
    aside = folder_aside(folder.parent, folder.name, os.getpid())
    _remove_of_dead(folder)
    try:
        begin_aside(aside)
        yield aside
        _sync_files(aside)
        for place in [*(path for path in aside.rglob("*") if path.is_dir()), aside]:
            sync(place)
        os.rename(aside, folder)  # takes the place of an empty folder
        sync(folder.parent)
    except BaseException as error:
        line = _one_line(aside, folder, error)
        if line is None:
            raise
        raise line from error


def put_in_place(aside: Path, folder: Path) -> None:
    """Move all files of `aside`, which is on the same disk and ends with it, to the same places in
    `folder`. Raises OSError.

    All are on the disk before the first moves. Configs come first, then weights, then the index of
    weights in several files: a folder that is new does not load before it is whole.
    """
    for path in sorted(_sync_files(aside), key=_place_in_order):
        target = folder / path.relative_to(aside)
        _make_folders(target.parent, folder)
        os.replace(path, target)
        sync(target.parent)
    remove(aside)


def _one_line(aside: Path, folder: Path, error: BaseException) -> CheckpointNotWritten | None:
    """What is raised where a write has failed, None for any other error. Nothing is left aside."""
    if isinstance(error, Exception) and is_write_error(error, (OSError, SafetensorError)):
        return not_written(aside, folder, reason_of(error))
    remove(aside)
    return None


def _sync_files(folder: Path) -> list[Path]:
    """All files below it, which are readable by others and on the disk now."""
    make_readable(folder)
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    for path in files:
        sync(path)
    return files


def _remove_of_dead(folder: Path) -> None:
    """The folders aside of processes of this machine that have ended."""
    for path in folder.parent.glob(".tmp-*"):
        match = re.fullmatch(rf"\.tmp-{re.escape(folder.name)}-(\d+)", path.name)
        if match and not _is_running(int(match.group(1))):
            remove(path)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except OSError as error:
        return error.errno != errno.ESRCH
    return True


def _place_in_order(path: Path) -> int:
    if path.name.endswith(".safetensors.index.json"):
        return 2
    return int(path.suffix == ".safetensors")


def _make_folders(wanted: Path, root: Path) -> None:
    """With their names on the disk."""
    if wanted != root and not wanted.is_dir():
        _make_folders(wanted.parent, root)
        wanted.mkdir()
        make_readable(wanted)
        sync(wanted.parent)
