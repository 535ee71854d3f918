"""A run that is told to stop: signals become a flag that the loop reads, and a run whose launcher died stops by itself."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from vision_core.distributed import any_true
from vision_core.errors import StoppedBeforeTraining
from vision_core.launchers import is_alive

WATCH_SECONDS = 1.0
GRACE_SECONDS = 30.0  # Kubernetes' terminationGracePeriodSeconds and SLURM's KillWait, where nobody sets them
# SIGUSR1 is what sbatch --signal=USR1@120, submitit and Lightning use as the warning before a time limit; some clusters use SIGUSR2.
STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)


class StopRequest:
    """`with StopRequest(launchers_above()) as stop:` SIGTERM, SIGUSR1, SIGUSR2, Ctrl-C and the death of a launcher are remembered
    instead of ending the process.

    The loop asks `agreed_at_step_end()`, saves and leaves with `exit_status`. A second signal changes nothing, so that a save
    is not cut; a second Ctrl-C raises KeyboardInterrupt at once. Where a step and a save take longer than the grace time together,
    `breaks_off()` is true between the micro-batches of a step once any process was told to stop.

    getting_ready: until `training_begins()` nothing has to be saved, so the first signal raises StoppedBeforeTraining
    wherever the program is: models and checkpoints are loaded, images are read to judge by and caches are filled for
    minutes or hours.
    """

    def __init__(self, launchers: list[tuple[int, str]], grace_seconds: float = GRACE_SECONDS, getting_ready: bool = False) -> None:
        self.launchers, self.grace_seconds, self.getting_ready = launchers, grace_seconds, getting_ready
        self.has_warned = False
        self.step_seconds = self.save_seconds = 0.0  # of the last step, and of the longest save
        self.breaks_steps = False  # the same on all processes
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

    def training_begins(self) -> None:
        """From here on a signal is remembered, and what was done is saved first. Raises StoppedBeforeTraining for one
        that came before.

        Every process calls it, once all are ready.
        """
        self._leave_if_getting_ready()  # a library may have swallowed what the signal raised
        self.getting_ready = False

    def agreed(self) -> bool:
        """True, on all processes alike, once any of them was told to stop. Every process calls it at the same place."""
        return any_true(self.signal is not None)[0]

    def agreed_at_step_end(self, can_break_off: bool) -> bool:
        """As `agreed`, at the end of a step. In the same reduction all processes settle whether the next step may be broken off.

        can_break_off: whether a step has several micro-batches, and its loop is able to.
        """
        is_too_long = self.step_seconds + self.save_seconds > self.grace_seconds
        told, self.breaks_steps = any_true(self.signal is not None, can_break_off and is_too_long)
        return told

    def breaks_off(self) -> bool:
        """Whether a step is to be left, asked by every process between two of its micro-batches. Where a step and a save fit into the
        grace time it is False, and the processes exchange nothing.
        """
        return self.breaks_steps and self.agreed()

    @property
    def exit_status(self) -> int:
        """The shell's status for a process that ended by this signal: 143 for SIGTERM, also where another process got it; 138 for SIGUSR1."""
        return 128 + (self.signal or signal.SIGTERM)

    def step_took(self, seconds: float) -> None:
        """Take note of a step that took `seconds`, from the end of what was done before it."""
        self.step_seconds = seconds

    def save_took(self, seconds: float, say: Callable[[str], None]) -> None:
        """Take note of a save that took `seconds`: one longer than the grace time is said, once in a run."""
        self.save_seconds = max(seconds, self.save_seconds)
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
            self._leave_if_getting_ready()

    def _leave_if_getting_ready(self) -> None:
        if self.getting_ready and self.signal is not None:
            line = f"told to stop by {self.signal.name} before the first step: nothing had to be saved; the same command starts again"
            raise StoppedBeforeTraining(self.exit_status, line)

    def _watch(self) -> None:
        while not self._over.wait(WATCH_SECONDS):
            if not all(map(is_alive, self.launchers)):
                os.kill(os.getpid(), signal.SIGTERM)
                return
