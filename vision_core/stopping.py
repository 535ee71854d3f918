"""A run that is told to stop: signals become a flag that the loop reads, and a run whose launcher died stops by itself."""

import os
import signal
import threading

from vision_core.distributed import all_true
from vision_core.launchers import is_alive

WATCH_SECONDS = 1.0


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
