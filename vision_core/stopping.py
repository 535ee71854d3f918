"""A run that is told to stop: signals become a flag that the loop reads, and a run whose launcher died stops by itself."""

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from vision_core.distributed import all_true
from vision_core.launchers import is_alive

WATCH_SECONDS = 1.0
PR_SET_PDEATHSIG = 1  # prctl(2)
KILLED_WORKER_SECONDS = 5.0


class StopRequest:
    """`with StopRequest(launchers_above()) as stop:` SIGTERM, Ctrl-C and the death of a launcher are remembered instead of ending the process.

    The loop asks `agreed()` between steps, saves and leaves with `exit_status`. A second SIGTERM changes nothing, so that a save
    is not cut; a second Ctrl-C raises KeyboardInterrupt at once.
    """

    def __init__(self, launchers: list[tuple[int, str]]) -> None:
        self.launchers = launchers
        self.signal: signal.Signals | None = None
        self._handlers: dict[int, object] = {}
        self._over = threading.Event()

    def __enter__(self) -> "StopRequest":
        for number in (signal.SIGTERM, signal.SIGINT):
            self._handlers[number] = signal.signal(number, self._remember)
        if self.launchers:
            threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, *exception) -> None:
        self._over.set()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def agreed(self) -> bool:
        """True, on all processes alike, once any of them was told to stop. Every process calls it at the same place."""
        return not all_true(self.signal is None)

    @property
    def exit_status(self) -> int:
        """The shell's status for a process that ended by this signal: 143 for SIGTERM, also where another process got it."""
        return 128 + (self.signal or signal.SIGTERM)

    def _remember(self, number: int, frame) -> None:
        if number == signal.SIGINT and self.signal == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = self.signal or signal.Signals(number)

    def _watch(self) -> None:
        while not self._over.wait(WATCH_SECONDS):
            if not all(map(is_alive, self.launchers)):
                os.kill(os.getpid(), signal.SIGTERM)
                return


def leave_signals_to_parent() -> None:
    """In a data worker: only the parent decides when to stop, and when it dies, however it dies, the worker goes with it.

    A signal to the whole process group (Ctrl-C, a scheduler) would otherwise end the workers before the parent's last step.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def end_data_workers() -> None:
    """Kill this process's data workers and wait for them. At its end Python would send them SIGTERM, which they leave to their parent, and wait for ever."""
    with worker_deaths_unnoticed():
        for worker in multiprocessing.active_children():
            worker.kill()
            worker.join(KILLED_WORKER_SECONDS)


@contextmanager
def worker_deaths_unnoticed() -> Iterator[None]:
    """Keep torch's handler of SIGCHLD from raising inside the block; the next batch still finds a dead worker."""
    handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, handler)
