"""Keeps image libraries from writing to the terminal about damaged or odd files, which would be a
line for each image of a source.

What they find wrong arrives as an exception, and becomes the reason of an `UnreadableImage`.
"""

import ctypes
import logging
import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from PIL import Image

# astropy's is not among them: it warns instead, and cannot be imported where somebody else has made
# its logger
LOGGERS = (
    "PIL.TiffImagePlugin",
    "tifffile",
    "pydicom",
    "pydicom.pixels.decoders.base",
    "pydicom.pixels.utils",
    "nibabel.global",
)
# whose warnings are meant: Python tells a warning by the module that it points at
MODULES = r"(PIL|tifffile|imagecodecs|pydicom|nibabel|astropy|pillow_heif|openslide|numpy|vision_core)(\.|$)"


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep warnings and log lines of the image libraries from the terminal while the block runs.

    Log lines of other threads are left alone. Warnings have one list of filters for a process. The
    first of the threads that read at the same time puts its filter in, and the last takes it out,
    so that no thread brings back the filters of another.
    """
    _hush_libtiff()
    _filter_logs()
    _state.enter()
    try:
        yield
    finally:
        _state.leave()


class _State:
    """How many blocks are open: in this thread, for log lines, and in the process, for warnings."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.thread = threading.local()
        self.open_blocks = 0
        self.filters: warnings.catch_warnings | None = None

    def enter(self) -> None:
        self.thread.open_blocks = self.open_in_thread() + 1
        with self.lock:
            self.open_blocks += 1
            if self.open_blocks == 1:
                self.filters = warnings.catch_warnings()
                self.filters.__enter__()
                warnings.filterwarnings("ignore", module=MODULES)

    def leave(self) -> None:
        self.thread.open_blocks -= 1
        with self.lock:
            self.open_blocks -= 1
            if self.open_blocks == 0:
                self.filters.__exit__(None, None, None)

    def open_in_thread(self) -> int:
        return getattr(self.thread, "open_blocks", 0)

    def renew_lock(self) -> None:
        """In a forked process, whose parent's other threads, and what they held, are not there."""
        self.lock = threading.Lock()


_state = _State()
os.register_at_fork(after_in_child=_state.renew_lock)


def _is_wanted(record: logging.LogRecord) -> bool:
    return not _state.open_in_thread()


@cache
def _filter_logs() -> None:
    for name in LOGGERS:
        logging.getLogger(name).addFilter(_is_wanted)


@cache
def _hush_libtiff() -> None:
    """libtiff writes to descriptor 2 itself, unless its handlers of errors and warnings are none
    (TIFFSetErrorHandler of its manual).

    They are those of the process, and of the copy of libtiff that Pillow brings: Pillow raises an
    OSError where libtiff reports an error, and loses nothing. Where libtiff is built into Pillow,
    as on Windows, it cannot be reached and stays as it is.
    """
    library = ctypes.CDLL(Image.core.__file__)
    for name in ("TIFFSetErrorHandler", "TIFFSetWarningHandler"):
        set_handler = getattr(library, name, None)
        if set_handler is not None:
            set_handler.restype = ctypes.c_void_p
            set_handler.argtypes = (ctypes.c_void_p,)
            set_handler(None)
