"""Reading files that others made: regular ones only, inside their folder, of a bounded size; nothing blocks."""

import glob
import hashlib
import os
import stat
from collections.abc import Iterable
from typing import BinaryIO

from vision_core.errors import UserError
from vision_core.images.unreadable import MAX_FILE_BYTES, UnreadableImage

# the folders of the Hugging Face hub's cache: <kind>--<name>/snapshots/<revision>/a/b.jpg -> ../../../../blobs/<hash>
REPOSITORY_KINDS = ("datasets--", "models--", "spaces--")
ANYWHERE = os.sep


def read_regular_file(path: str, *roots: str, most_bytes: int = MAX_FILE_BYTES) -> bytes:
    """The bytes of a regular file.

    Args:
        roots: real paths of folders (`data_roots`); the file, its links resolved, must lie in one of them. None: anywhere.
        most_bytes: a larger file is refused.

    Raises:
        UnreadableImage: outside_the_data_folder, not_a_regular_file, file_too_large, missing or cannot_be_opened.
    """
    with open_regular_file(path, *roots) as file:
        if os.fstat(file.fileno()).st_size > most_bytes:
            raise UnreadableImage("file_too_large")
        try:
            return file.read(most_bytes)
        except OSError:
            raise UnreadableImage("cannot_be_opened") from None


def open_regular_file(path: str, *roots: str) -> BinaryIO:
    """A regular file, open for reading; where it may lie and what is raised as for `read_regular_file`."""
    try:
        real = os.path.realpath(path)
        if roots and not any(is_inside(real, root) for root in roots):
            raise UnreadableImage("outside_the_data_folder")
        if not stat.S_ISREG(os.stat(real).st_mode):
            raise UnreadableImage("not_a_regular_file")
        file = open(real, "rb", opener=_open_without_waiting)  # noqa: SIM115, the caller closes it
    except FileNotFoundError:
        raise UnreadableImage("missing") from None
    except (OSError, ValueError):
        raise UnreadableImage("cannot_be_opened") from None
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise UnreadableImage("not_a_regular_file")
    return file


def data_roots(folder: str | os.PathLike, follow_links: bool = False) -> tuple[str, ...]:
    """The real paths of the folders in which everything that is read below `folder` must lie, its links resolved.

    They are the folder itself and, for a folder inside a repository of the Hugging Face hub's cache, that repository, whose files are links
    to its `blobs`. With `follow_links` a file may lie anywhere.
    """
    if follow_links:
        return (ANYWHERE,)
    real = os.path.realpath(folder)
    repository = repository_of(real)
    return (real,) if repository is None else (real, repository)


def repository_of(real: str) -> str | None:
    """The repository folder of the hub's cache in which a real path lies, or None."""
    parent, name = os.path.split(real)
    while name:
        if name.startswith(REPOSITORY_KINDS) and is_repository(real):
            return real
        real = parent
        parent, name = os.path.split(real)
    return None


def is_repository(folder: str) -> bool:
    """Whether a folder holds `snapshots` and the `blobs` that they link to."""
    return all(os.path.isdir(os.path.join(folder, part)) for part in ("snapshots", "blobs"))


def _open_without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0))


def is_inside(path: str, folder: str) -> bool:
    """Whether a normalised absolute path lies below a normalised absolute folder."""
    return path.startswith(folder.rstrip(os.sep) + os.sep)


def files_matching(kind: str, pattern: str, extension: str) -> list[str]:
    """The files that a glob pattern (or a folder's name) matches, sorted; raises `UserError` where there is none."""
    if os.path.isdir(pattern):
        pattern = os.path.join(glob.escape(pattern), f"*{extension}")
    paths = sorted(path for path in glob.glob(pattern, recursive=True) if not os.path.isdir(path))
    if not paths:
        raise UserError(f"no file matches {kind}:{pattern}; check the path and quote the pattern for the shell")
    for path in paths:
        if not os.path.isfile(path):
            raise UserError(f"{path} is not a regular file; leave it out of {kind}:{pattern}")
    return paths


def files_fingerprint(paths: Iterable[str], *options: object) -> str:
    """A hash of names, sizes and times of change: another one when a file is written anew."""
    digest = hashlib.blake2b(repr(options).encode(), digest_size=16)
    for path in paths:
        try:
            status = os.stat(path)
            digest.update(repr((path, status.st_size, status.st_mtime_ns)).encode("utf-8", "surrogateescape"))
        except OSError:
            digest.update(repr((path, "missing")).encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def state_of_files(files: Iterable[tuple[str, str]], *options: object) -> tuple[str, str]:
    """Of files, given by (name, path): a hash over names and sizes, which a copy elsewhere has too, and one over times of change."""
    content = hashlib.blake2b(repr(options).encode("utf-8", "surrogateescape"), digest_size=16)
    times = hashlib.blake2b(digest_size=16)
    for name, path in files:
        try:
            status = os.stat(path)
            size, changed = status.st_size, status.st_mtime_ns
        except OSError:
            size, changed = -1, -1
        content.update(repr((name, size)).encode("utf-8", "surrogateescape"))
        times.update(repr(changed).encode())
    return content.hexdigest(), times.hexdigest()


def short_names(paths: list[str]) -> list[str]:
    """The paths relative to the folder that all of them share."""
    shared = os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in paths])
    return [os.path.relpath(path, shared) for path in paths]
