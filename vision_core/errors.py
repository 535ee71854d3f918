"""How a program tells its user what went wrong: one line, exit status 2."""

import re
import sys
from collections.abc import Callable
from contextlib import suppress

from vision_core.data_workers import end_data_workers
from vision_core.last_word import repeat_behind_launchers
from vision_core.launchers import is_first_launched

CTRL_C = "stopped by Ctrl-C"
_undo: list[Callable[[], None]] = []


class UserError(ValueError):
    """A mistake that the user can mend. The message is one line: what is wrong, where, and the cure."""


def first_line(error: Exception) -> str:
    """The first line of an error's message, or its type where there is none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def undo_if_failed(undo: Callable[[], None]) -> None:
    """Have `run_script` call `undo` where its `main` ends by an error: for what would stand in the way of the same command, mended."""
    _undo.append(undo)


class Stopped(SystemExit):
    """The end of a program that was told to stop and has said `line`. status: 143 for SIGTERM, 138 for SIGUSR1, 130 for Ctrl-C."""

    def __init__(self, status: int, line: str) -> None:
        super().__init__(status)
        self.line = line


class AllDone(SystemExit):
    """The end, with status 0, of a program whose work was done by an earlier start of the same command. line: says so."""

    def __init__(self, line: str) -> None:
        super().__init__(0)
        self.line = line


def run_script(main: Callable[[], None]) -> None:
    """Run a script's `main`; a `UserError` ends the program with its line on stderr and status 2, Ctrl-C with 130.

    Data workers go with the end of `main`, whichever it is. After an error of any kind, what was given to
    `undo_if_failed` is called, the last first. Behind a launcher's report of the end, the last line is said once more.
    """
    try:
        _run(main)
    except UserError as error:
        *traceback, message = str(error).strip().splitlines() or ["no reason given"]
        if traceback:  # a data worker's error arrives with it in front, and its last line is `module.Type: message`
            message = re.sub(r"^[\w.]+: ", "", message)
        say_last(f"error: {message}")
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        say_last(CTRL_C)
        raise SystemExit(130) from None
    except AllDone as end:
        if is_first_launched():
            print(end.line, flush=True)
        raise
    except Stopped as end:
        repeat_behind_launchers(end.line)
        raise


def say_last(line: str) -> None:
    """The last line of a program that ends early, on stderr; and behind the report of its launcher."""
    with suppress(OSError):  # of a pipe whose reader has gone
        sys.stdout.flush()  # what waits for a log file was said before
    print(line, file=sys.stderr, flush=True)
    repeat_behind_launchers(line)


def _run(main: Callable[[], None]) -> None:
    _undo.clear()
    try:
        main()
    except BaseException as error:
        end_data_workers()
        while _undo and not isinstance(error, SystemExit):  # who was told to stop can go on
            _undo.pop()()
        raise
    finally:
        end_data_workers()
        _undo.clear()
