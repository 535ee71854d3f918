"""Data workers leave signals to their parent, which ends them however it ends itself.

Imports nothing heavy.
"""

import atexit
import ctypes
import multiprocessing.util  # its own clean-up at the end of Python is registered first, and so runs behind ours
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

PR_SET_PDEATHSIG = 1  # prctl(2)
KILLED_WORKER_SECONDS = 5.0


def leave_signals_to_parent(worker: int = 0) -> None:
    """In a data worker, as its `worker_init_fn`: only the parent decides when to stop.

    When the parent dies, however it dies, the worker goes with it. A signal to the whole process
    group (Ctrl-C, a scheduler) would otherwise end the workers before the parent's last step.
    """
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def end_data_workers() -> None:
    """Kill this process's data workers and wait for them.

    At its end Python would send them SIGTERM, which they leave to their parent, and wait for ever.
    A training loop calls this when it ends, `run_script` for every program, and Python at its end
    for whoever uses neither.
    """
    with worker_deaths_unnoticed():
        kill_data_workers()


def kill_data_workers() -> None:
    """The same from a thread beside the main one, of a process that is about to end: torch's
    handler stays."""
    for worker in multiprocessing.active_children():
        worker.kill()
        worker.join(KILLED_WORKER_SECONDS)


@contextmanager
def worker_deaths_unnoticed() -> Iterator[None]:
    """Keep torch's handler of SIGCHLD from raising inside the block; the next batch still finds a
    dead worker."""
    handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, handler)


atexit.register(end_data_workers)
