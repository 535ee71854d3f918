"""Reading files that others made: regular ones only, inside their folder, of a bounded size; nothing blocks."""

import glob
import hashlib
import os
import stat
from collections.abc import Iterable

from vision_core.errors import UserError
from vision_core.images.unreadable import UnreadableImage

MAX_FILE_BYTES = 256 * 2**20


def read_regular_file(path: str, root: str | None = None) -> bytes:
    """The bytes of a regular file of at most 256 MiB.

    Args:
        root: real path (`os.path.realpath`) of the folder that the file, its links resolved, must lie in.

    Raises:
        UnreadableImage: outside_the_data_folder, not_a_regular_file, file_too_large, missing or cannot_be_opened.
    """
    try:
        real = os.path.realpath(path)
        if root is not None and not is_inside(real, root):
            raise UnreadableImage("outside_the_data_folder")
        if not stat.S_ISREG(os.stat(real).st_mode):
            raise UnreadableImage("not_a_regular_file")
        with open(real, "rb", opener=_open_without_waiting) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise UnreadableImage("not_a_regular_file")
            if status.st_size > MAX_FILE_BYTES:
                raise UnreadableImage("file_too_large")
            return file.read(MAX_FILE_BYTES)
    except FileNotFoundError:
        raise UnreadableImage("missing") from None
    except (OSError, ValueError):
        raise UnreadableImage("cannot_be_opened") from None


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


def short_names(paths: list[str]) -> list[str]:
    """The paths relative to the folder that all of them share."""
    shared = os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in paths])
    return [os.path.relpath(path, shared) for path in paths]


def first_line(error: Exception) -> str:
    """The first line of an error's message, or its type where there is none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
