"""Write a file beside its place and show it by one rename; remove what killed processes left.

A process holds a lock on the file that it writes, and the kernel lets go of it however the process
ends. So the next process can tell what a killed one left from what a living one writes, in other
containers of the same machine too.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import platform
import re
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

THIS_MACHINE = hashlib.sha256(platform.node().encode()).hexdigest()[:8]
OUR_NAME = re.compile(r"\.tmp-([0-9a-f]{8})-[0-9]+-[0-9a-f]{8}")  # machine, process, a draw
SECONDS_OF_A_DAY = 24 * 60 * 60


def write_whole(path: Path, content: bytes, aside_in: Path, keep_first: bool = False) -> None:
    """Write a file so that a reader, a second writer or a crash finds all of it or nothing.

    The file lies in `aside_in`, on the same file system, until its content has reached the disk.
    Raises OSError, and then nothing of it is left. keep_first: a file that is there by then stays,
    in place of the new one.
    """
    for folder in (aside_in, path.parent):
        _make_folder(folder)
    with _locked_file(aside_in) as (aside, descriptor):
        with open(descriptor, "wb", closefd=False) as file:
            file.write(content)
        os.fsync(descriptor)
        _show(aside, path, keep_first)
    _sync_folder(path.parent)


def remove_litter(paths: Iterable[Path]) -> None:
    """Remove what killed processes were writing: of this machine at once, everything else once it
    is a day old.

    `paths` may name files that are written at this moment, which stay. What cannot be removed stays
    too.
    """
    for path in paths:
        with contextlib.suppress(OSError):
            if path.is_dir() and not path.is_symlink():
                _remove_old_folder(path)
            else:
                _remove_abandoned_file(path)


def _show(aside: Path, path: Path, keep_first: bool) -> None:
    if keep_first:
        try:
            os.link(aside, path)  # which, unlike a rename, never replaces
        except FileExistsError:
            pass
        except OSError:  # a file system without links
            os.replace(aside, path)
            return
        aside.unlink()
    else:
        os.replace(aside, path)


@contextlib.contextmanager
def _locked_file(folder: Path) -> Iterator[tuple[Path, int]]:
    """A new file (path, descriptor) that `remove_litter` leaves alone meanwhile. After an error it
    is gone."""
    aside, descriptor = _new_locked_file(folder)
    try:
        yield aside, descriptor
    except BaseException:
        with contextlib.suppress(OSError):
            aside.unlink()
        raise
    finally:
        os.close(descriptor)


def _new_locked_file(folder: Path) -> tuple[Path, int]:
    while True:
        aside = folder / f".tmp-{THIS_MACHINE}-{os.getpid()}-{secrets.token_hex(4)}"
        descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        with contextlib.suppress(OSError):  # without locks the process's number decides
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink:
            return aside, descriptor
        os.close(descriptor)  # it was taken for litter before it had its lock


def _remove_abandoned_file(path: Path) -> None:
    ours = OUR_NAME.fullmatch(path.name)
    is_of_this_machine = ours is not None and ours[1] == THIS_MACHINE
    if not is_of_this_machine and not _is_old(path):
        return
    descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()
    except BlockingIOError:
        return  # somebody writes it
    except OSError:  # a file system without locks
        if _is_old(path) or not _lives(int(path.name.split("-")[2])):
            path.unlink()
    finally:
        os.close(descriptor)


def _remove_old_folder(folder: Path) -> None:
    """Earlier versions filled a folder aside."""
    if all(_is_old(path) for path in [folder, *folder.rglob("*")]):
        shutil.rmtree(folder)


def _is_old(path: Path) -> bool:
    return time.time() - path.lstat().st_mtime > SECONDS_OF_A_DAY


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _make_folder(folder: Path) -> None:
    """With its parents; the name of each new one is on the disk afterwards."""
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    for each in reversed(missing):
        each.mkdir(exist_ok=True)
        _sync_folder(each.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
