"""Keep two runs out of one folder by a lock."""

import fcntl
import os
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from vision_core.errors import UserError

LOCK = ".lock"
MOST_SECONDS_OF_DYING = 10.0


class FolderLock:
    """A lock on `folder/.lock` that the kernel frees when the process dies. Raises UserError when
    another has it."""

    def __init__(self, folder: Path, warn: Callable[[str], None]) -> None:
        self._path = folder / LOCK
        self._descriptor: int | None = None
        while self._descriptor is None:
            was_there = self._path.exists()
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
            self._hold(folder, warn)
            if not _is_file(
                self._descriptor, self._path
            ):  # the holder before has put it back, and another may have made it anew
                self.release()
        status = os.fstat(self._descriptor)
        self._before = os.pread(self._descriptor, status.st_size, 0) if was_there else None
        self._times_before = (status.st_atime_ns, status.st_mtime_ns)
        self._write(f"pid {os.getpid()} on {socket.gethostname()}\n".encode())
        # A forked data worker would hold the lock as well, and outlive a killed run by seconds.
        os.register_at_fork(after_in_child=self.release)

    def release(self) -> None:
        """Close this process's hold; harmless when done twice."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def put_back(self) -> None:
        """Release, and leave the file as it was found, or none: for a run that was refused.
        Harmless when done twice."""
        if self._descriptor is None:
            return
        with suppress(OSError):
            if self._before is None:
                self._path.unlink()
            else:
                self._write(self._before)
                os.utime(self._path, ns=self._times_before)
        self.release()

    def _hold(self, folder: Path, warn: Callable[[str], None]) -> None:
        try:
            _take(self._descriptor)
        except BlockingIOError:
            holder = _holder(self._descriptor)
            self.release()
            raise UserError(_in_use(folder, holder)) from None
        except OSError as error:
            warn(
                f"{folder} cannot be locked on this file system ({error.strerror}): start no second run there"
            )

    def _write(self, content: bytes) -> None:
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, content, 0)


def refuse_in_use(folder: Path) -> None:
    """Raises UserError where another process holds the lock of a folder. Makes and changes
    nothing."""
    try:
        descriptor = os.open(folder / LOCK, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return
    try:
        _take(descriptor)
    except BlockingIOError:
        raise UserError(_in_use(folder, _holder(descriptor))) from None
    except OSError:
        return
    finally:
        os.close(descriptor)


def _take(descriptor: int) -> None:
    """Hold the lock. A holder that is dead but not gone, which takes a moment for a large process
    with threads, is waited for.

    Raises BlockingIOError where another process holds it, and another OSError where the file system
    knows no locks.
    """
    end = time.monotonic() + MOST_SECONDS_OF_DYING
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > end or not _is_dying(_holder(descriptor)):
                raise
            time.sleep(0.05)


def _is_dying(holder: str) -> bool:
    """Whether the process that a lock names has ended, here, and the kernel is about to free what
    it held."""
    words = holder.split()
    if len(words) != 4 or words[3] != socket.gethostname() or not words[1].isdigit():
        return False
    try:
        state = Path(f"/proc/{words[1]}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return Path("/proc/self/stat").exists()
    except OSError:
        return False
    return state in "ZX"


def _in_use(folder: Path, holder: str) -> str:
    return f"{folder} is in use by another run ({holder}); stop it or give another --output_dir"


def _holder(descriptor: int) -> str:
    return os.pread(descriptor, 200, 0).decode(errors="replace").strip()


def _is_file(descriptor: int, path: Path) -> bool:
    """Whether the open file is still the one of this name."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False
