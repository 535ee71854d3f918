"""A run that is told to stop: signals become a flag that the loop reads, and a run whose launcher died stops by itself."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from vision_core.distributed import all_true
from vision_core.launchers import is_alive

WATCH_SECONDS = 1.0
GRACE_SECONDS = 30.0  # Kubernetes' terminationGracePeriodSeconds and SLURM's KillWait, where nobody sets them
# SIGUSR1 is what sbatch --signal=USR1@120, submitit and Lightning use as the warning before a time limit; some clusters use SIGUSR2.
STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)


class StopRequest:
    """`with StopRequest(launchers_above()) as stop:` SIGTERM, SIGUSR1, SIGUSR2, Ctrl-C and the death of a launcher are remembered
    instead of ending the process.

    The loop asks `agreed()` between steps, saves and leaves with `exit_status`. A second signal changes nothing, so that a save
    is not cut; a second Ctrl-C raises KeyboardInterrupt at once.
    """

    def __init__(self, launchers: list[tuple[int, str]], grace_seconds: float = GRACE_SECONDS) -> None:
        self.launchers, self.grace_seconds = launchers, grace_seconds
        self.has_warned = False
        self.signal: signal.Signals | None = None
        self.told_at = 0.0
        self._handlers: dict[int, object] = {}
        self._over = threading.Event()

    def __enter__(self) -> "StopRequest":
        for number in STOPS:
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
        """The shell's status for a process that ended by this signal: 143 for SIGTERM, also where another process got it; 138 for SIGUSR1."""
        return 128 + (self.signal or signal.SIGTERM)

    def save_took(self, seconds: float, say: Callable[[str], None]) -> None:
        """Take note of a save that took `seconds`: one longer than the grace time is said, once in a run."""
        if seconds > self.grace_seconds and not self.has_warned:
            self.has_warned = True
            say(
                f"warning: a save took {seconds:.1f} s, and --grace_seconds is {self.grace_seconds:g}: a run that is told to stop may be killed "
                "before it is saved. Give it more time (terminationGracePeriodSeconds), an earlier signal (sbatch --signal=USR1@120), "
                "or save more often (--save_steps)"
            )

    @contextmanager
    def save_watched(self, say: Callable[[str], None]) -> Iterator[None]:
        """Around a save, whose time `save_took` is told."""
        began = time.monotonic()
        yield
        self.save_took(time.monotonic() - began, say)

    @property
    def time_taken(self) -> str:
        """How long ago the first signal came, for the end of the last line; "" where another process got it."""
        return f" ({time.monotonic() - self.told_at:.1f} s after {self.signal.name})" if self.signal else ""

    def _remember(self, number: int, frame) -> None:
        if number == signal.SIGINT and self.signal == signal.SIGINT:
            raise KeyboardInterrupt
        if self.signal is None:
            self.signal, self.told_at = signal.Signals(number), time.monotonic()

    def _watch(self) -> None:
        while not self._over.wait(WATCH_SECONDS):
            if not all(map(is_alive, self.launchers)):
                os.kill(os.getpid(), signal.SIGTERM)
                return
