"""Read files that others made: regular files only, inside their folder, of a bounded size."""

import glob
import hashlib
import os
import stat
from collections.abc import Iterable
from contextlib import suppress
from typing import BinaryIO

from vision_core.errors import UserError
from vision_core.unreadable import MAX_FILE_BYTES, UnreadableImage

# the folders of the Hugging Face hub's cache: <kind>--<name>/snapshots/<revision>/a/b.jpg ->
# ../../../../blobs/<hash>
REPOSITORY_KINDS = ("datasets--", "models--", "spaces--")
ANYWHERE = os.sep
# to go through a folder, which O_PATH (of Linux) asks no right to read for
FOLDER = os.O_DIRECTORY | os.O_NOFOLLOW | getattr(os, "O_PATH", os.O_RDONLY)
FILE = os.O_RDONLY | os.O_NONBLOCK


def read_regular_file(path: str | os.PathLike, *roots: str, most_bytes: int = MAX_FILE_BYTES) -> bytes:
    """The bytes of a regular file.

    Args:
        roots: real paths of folders (`data_roots`); the file, its links resolved, must lie in one
            of them. None: anywhere.
        most_bytes: a larger file is refused.

    Raises:
        UnreadableImage: outside_the_data_folder, not_a_regular_file, file_too_large, missing or
            cannot_be_opened.
    """
    with _opened(path, roots, buffering=0) as file:
        if os.fstat(file.fileno()).st_size > most_bytes:
            raise UnreadableImage("file_too_large")
        try:
            data = file.read()
        except OSError:
            raise UnreadableImage("cannot_be_opened") from None
    if len(data) > most_bytes:  # it grew, or is of a kind that tells no size
        raise UnreadableImage("file_too_large")
    return data


def open_regular_file(path: str | os.PathLike, *roots: str) -> BinaryIO:
    """A regular file, open for reading; where it may lie and what is raised as for
    `read_regular_file`."""
    return _opened(path, roots, buffering=-1)


def _opened(path: str | os.PathLike, roots: tuple[str, ...], buffering: int) -> BinaryIO:
    try:
        confined = roots and ANYWHERE not in roots
        descriptor = _open_inside(os.fspath(path), roots) if confined else _open_anywhere(path)
    except FileNotFoundError:
        raise UnreadableImage("missing") from None
    except (OSError, ValueError):  # the second for a NUL in the path
        raise UnreadableImage("cannot_be_opened") from None
    # by an opener, so that the file has its path as its name, which some readers ask for
    file = open(path, "rb", buffering=buffering, opener=lambda *_: descriptor)  # noqa: SIM115, the caller closes it
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):  # it has been replaced since it was looked at
        file.close()
        raise UnreadableImage("not_a_regular_file")
    return file


def _open_anywhere(path: str | os.PathLike) -> int:
    if not stat.S_ISREG(
        os.stat(path).st_mode
    ):  # a pipe would wait for a writer, and opening a device may already act on it
        raise UnreadableImage("not_a_regular_file")
    return os.open(path, FILE)


def _open_inside(path: str, roots: tuple[str, ...]) -> int:
    """A descriptor of the file, reached from its root without following a link.

    A path that has links is resolved first, and the real one is opened so. What is put in the place
    of a folder in between is not followed.
    """
    root = _root_of(path, roots) if _is_plain(path) else None
    if root is not None:
        with suppress(_LinkMet):
            return _open_below(root, path)
    real = os.path.realpath(path)
    root = _root_of(real, roots)
    if root is None:
        raise UnreadableImage("outside_the_data_folder")
    return _open_below(root, real)


def _is_plain(path: str) -> bool:
    """Whether no part of a path is empty, `.` or `..`: what begins with a folder's name then lies
    in it, if there is no link."""
    return (
        "//" not in path
        and "/./" not in path
        and "/../" not in path
        and not path.endswith(("/", "/.", "/.."))
    )


def _root_of(path: str, roots: tuple[str, ...]) -> str | None:
    return next((root for root in roots if is_inside(path, root)), None)


class _LinkMet(OSError):
    """A link stands where none is followed."""


def _open_below(root: str, path: str) -> int:
    """Folder by folder, each by the descriptor of the one before. Raises OSError,
    UnreadableImage."""
    *folders, name = path[len(root.rstrip(os.sep)) + 1 :].split(os.sep)
    folder = os.open(root, FOLDER)
    try:
        for each in folders:
            below = _open_folder(each, folder)
            os.close(folder)
            folder = below
        kind = os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode
        if stat.S_ISLNK(kind):
            raise _LinkMet
        if not stat.S_ISREG(kind):
            raise UnreadableImage("not_a_regular_file")
        return os.open(name, FILE | os.O_NOFOLLOW, dir_fd=folder)
    finally:
        os.close(folder)


def _open_folder(name: str, parent: int) -> int:
    try:
        return os.open(name, FOLDER, dir_fd=parent)
    except NotADirectoryError:
        raise _LinkMet from None


def data_roots(folder: str | os.PathLike, follow_links: bool = False) -> tuple[str, ...]:
    """The real paths of the folders in which everything that is read below `folder` must lie, its
    links resolved.

    They are the folder itself and, for a folder inside a repository of the Hugging Face hub's
    cache, that repository, whose files are links to its `blobs`. With `follow_links` a file may lie
    anywhere.
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


def is_inside(path: str, folder: str) -> bool:
    """Whether a normalised absolute path lies below a normalised absolute folder."""
    return path.startswith(folder.rstrip(os.sep) + os.sep)


def files_matching(kind: str, pattern: str, extension: str) -> list[str]:
    """The files that a glob pattern (or a folder's name) matches, sorted; raises `UserError` where
    there is none."""
    if os.path.isdir(pattern):
        pattern = os.path.join(glob.escape(pattern), f"*{extension}")
    paths = sorted(path for path in glob.glob(pattern, recursive=True) if not os.path.isdir(path))
    if not paths:
        raise UserError(
            f"no file matches {kind}:{pattern}; check the path and quote the pattern for the shell"
        )
    for path in paths:
        if not os.path.isfile(path):
            raise UserError(f"{path} is not a regular file; leave it out of {kind}:{pattern}")
    return paths


def refuse_special_files(place: str | os.PathLike, at_any_depth: bool = False) -> None:
    """Raise UserError for a pipe, a socket or a device in a folder: a library that reads the folder
    would wait for a writer, for ever.

    place: anything but a folder is left to the library.
    """
    for folder, folders, names in os.walk(place):
        for name in sorted(names):
            path = os.path.join(folder, name)
            if os.path.exists(path) and not os.path.isfile(path):
                raise UserError(
                    f"{path} is a pipe, a socket or a device, which is not read; take it out of the folder"
                )
        if not at_any_depth:
            folders.clear()


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
    """Of files, given by (name, path): a hash over names and sizes, which a copy elsewhere has too,
    and one over times of change."""
    content = hashlib.blake2b(repr(options).encode("utf-8", "surrogateescape"), digest_size=16)
    times = hashlib.blake2b(digest_size=16)
    for name, path in files:
        try:
            status = os.stat(path)
            size = status.st_size
            changed = status.st_mtime_ns
        except OSError:
            size = -1
            changed = -1
        content.update(repr((name, size)).encode("utf-8", "surrogateescape"))
        times.update(repr(changed).encode())
    return content.hexdigest(), times.hexdigest()


def short_names(paths: list[str]) -> list[str]:
    """The paths relative to the folder that all of them share."""
    shared = os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in paths])
    return [os.path.relpath(path, shared) for path in paths]
