"""Processes that train together fail together: an error that one of them meets ends all within seconds, and is said once.

The others would wait in a collective operation for the one that has failed, until its timeout or their launcher kills
them; and the main process, killed, leaves the new folder of a run in which nothing was done. So each process looks twice
a second whether another one has failed, in a store that the main process keeps. It then takes back what stands in the
way of the same command, mended, and ends.
"""

import atexit
import os
import socket
import sys
import threading
import time
from contextlib import suppress
from datetime import timedelta

import torch.distributed as dist

from vision_core.data_workers import kill_data_workers
from vision_core.distributed import all_true, broadcast_text, is_main_process, print_once, world_size
from vision_core.errors import fail_with, undo_all

LOOK_SECONDS = 0.5
GRACE_SECONDS = 2.0  # in which a process may come to an error of its own: what all meet alike, all say
PATIENCE_SECONDS = 6.0  # of the one that failed, for the others to hear it
CONNECT_SECONDS = 60
LEAVE_SECONDS = 2.0
FAILED, HEARD, GONE = "failed", "heard", "gone"
_peers: "Peers | None" = None


def fail_together() -> None:
    """Begin to look after the other processes, once all have joined; every process calls it. Alone it does nothing."""
    global _peers
    if world_size() == 1 or _peers is not None:
        return
    store = _shared_store()
    if not all_true(store is not None):
        cannot = "warning: processes cannot reach the main one's store"
        print_once([f"{cannot}: after an error of one, the launcher has to end the others"])
        return
    _peers = Peers(store, world_size())
    fail_with(_peers)


class Peers:
    """The processes of this job, `processes` in number, who hear of a failure through `store`, each of its own too."""

    def __init__(self, store: dist.Store, processes: int) -> None:
        self.store, self.processes = store, processes
        self.is_failing, self.is_leaving, self.is_over = threading.Event(), threading.Event(), threading.Event()
        self.thread = threading.Thread(target=self._look, daemon=True)
        self.thread.start()
        # a thread that wakes up in a Python that is being taken down would end it by a signal
        atexit.register(self._stop)

    def before_saying(self) -> None:
        """This process fails. One that fails because another is gone has nothing to say: `_leave` ends it here."""
        self.is_failing.set()
        if self.is_leaving.is_set():
            time.sleep(PATIENCE_SECONDS)

    def after_saying(self, status: int) -> None:
        """Let the others hear it, who are to end with `status`, and wait until they have, but not for ever.

        The main process, whose stores all use, is the last to go.
        """
        deadline = time.monotonic() + PATIENCE_SECONDS
        with suppress(RuntimeError):  # the main process is gone, and its store with it
            self.store.set(FAILED, str(status))
            self._wait_for(HEARD, self.processes, deadline)
            if is_main_process():
                self._wait_for(GONE, self.processes - 1, deadline)
            else:
                self.store.add(GONE, 1)

    def _wait_for(self, key: str, number: int, deadline: float) -> None:
        while self.store.add(key, 0) < number and time.monotonic() < deadline:
            time.sleep(0.02)

    def _look(self) -> None:
        with suppress(RuntimeError):
            while not self.store.check([FAILED]):
                if self.is_over.wait(LOOK_SECONDS):
                    return
            if self.is_failing.wait(GRACE_SECONDS):
                self.store.add(HEARD, 1)
            else:
                self._leave()

    def _leave(self) -> None:
        """A little later than the one that failed, so that a launcher names that one.

        The main thread may be in a library, where nothing else ends it.
        """
        self.is_leaving.set()
        kill_data_workers()
        undo_all()
        status = int(self.store.get(FAILED))
        self.store.add(HEARD, 1)
        time.sleep(LEAVE_SECONDS)
        with suppress(RuntimeError):
            self.store.add(GONE, 1)
        with suppress(OSError, ValueError):
            sys.stdout.flush()
        os._exit(status)

    def _stop(self) -> None:
        self.is_over.set()
        self.thread.join(LOOK_SECONDS + GRACE_SECONDS)


def _shared_store() -> dist.Store | None:
    """One store for all processes, None where this one cannot reach it."""
    host, store = os.environ.get("MASTER_ADDR") or socket.gethostname(), None
    timeout = timedelta(seconds=CONNECT_SECONDS)
    with suppress(RuntimeError):
        if is_main_process():
            store = dist.TCPStore(host, 0, is_master=True, wait_for_workers=False, timeout=timeout)
    port = int(broadcast_text(str(store.port if store else 0)))
    with suppress(RuntimeError):
        if port and not is_main_process():
            store = dist.TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=timeout)
    return store
