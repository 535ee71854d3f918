"""A run that is told to stop: signals become a flag that the loop reads, and a run whose launcher died stops by itself."""

import ctypes
import os
import signal
import sys
import threading
from pathlib import Path

from vision_core.distributed import all_true

# Programs that start a training script as their child. `accelerate launch` with one process and `deepspeed` on one machine die of
# SIGTERM without telling the script, which would train on unseen.
LAUNCHERS = {"accelerate", "accelerate-launch", "torchrun", "deepspeed"}
LAUNCHER_MODULES = {"accelerate.commands.launch", "torch.distributed.run", "deepspeed.launcher.launch", "deepspeed.launcher.runner"}
WATCH_SECONDS = 1.0
PR_SET_PDEATHSIG = 1  # prctl(2)


class StopRequest:
    """`with StopRequest() as stop:` SIGTERM, Ctrl-C and the death of a launcher are remembered instead of ending the process.

    The loop asks `agreed()` between steps, saves and leaves with `exit_status`. A second SIGTERM changes nothing, so that a save
    is not cut; a second Ctrl-C raises KeyboardInterrupt at once.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._handlers: dict[int, object] = {}
        self._over = threading.Event()

    def __enter__(self) -> "StopRequest":
        for number in (signal.SIGTERM, signal.SIGINT):
            self._handlers[number] = signal.signal(number, self._remember)
        launchers = launchers_above()
        if launchers:
            threading.Thread(target=self._watch, args=(launchers,), daemon=True).start()
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

    def _watch(self, launchers: list[tuple[int, str]]) -> None:
        while not self._over.wait(WATCH_SECONDS):
            if any(_start_time(pid) != started for pid, started in launchers):
                os.kill(os.getpid(), signal.SIGTERM)
                return


def launchers_above() -> list[tuple[int, str]]:
    """The launchers among this process's ancestors, nearest first, as (process id, start time); [] where there is no /proc."""
    found, pid = [], os.getppid()
    while _is_launcher(pid):
        found.append((pid, _start_time(pid)))
        pid = int(_status(pid)[1])
    return found


def leave_signals_to_parent() -> None:
    """In a data worker: only the parent decides when to stop, and when it dies, however it dies, the worker goes with it.

    A signal to the whole process group (Ctrl-C, a scheduler) would otherwise end the workers before the parent's last step.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _is_launcher(pid: int) -> bool:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")[:4]
    except OSError:
        return False
    return any(Path(word).name in LAUNCHERS or word in LAUNCHER_MODULES for word in words)


def _start_time(pid: int) -> str | None:
    """When a process began, in the kernel's ticks: with the id it names one process for ever. None for a dead one."""
    status = _status(pid)
    return None if status is None or status[0] == "Z" else status[19]


def _status(pid: int) -> list[str] | None:
    """The fields of /proc/<pid>/stat from the third on (proc(5)); the second, the name, may hold spaces."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
