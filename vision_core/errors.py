"""How a program tells its user what went wrong: one line, exit status 2."""

import errno
import os
import re
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from vision_core.printable import fitted, printable, say, shortened
from vision_core.processes.data_workers import end_data_workers
from vision_core.processes.last_word import repeat_behind_launchers
from vision_core.processes.launchers import is_first_launched

CTRL_C = "stopped by Ctrl-C"
MOST_OF_A_REASON = 150
FAULTS_OF_A_NAME = (errno.ENAMETOOLONG, errno.ELOOP)
# how torch hands on an error of a data worker; its last line is the error itself
OF_A_DATA_WORKER = re.compile(r"Caught \w+ .*\nOriginal Traceback")
_undo: list[Callable[[], None]] = []
_others: list["OtherProcesses"] = []


class UserError(ValueError):
    """A mistake that the user can mend. The message is one printable line: what is wrong, where,
    and the cure."""

    def __init__(self, message: object = "") -> None:
        text = str(message)
        super().__init__(text if OF_A_DATA_WORKER.match(text) else printable(text))


def first_line(error: BaseException) -> str:
    """The first line of a library's message, at most 150 printable characters of it, or its type
    where there is none."""
    return shortened((str(error).strip() or type(error).__name__).splitlines()[0], MOST_OF_A_REASON)


def undo_if_failed(undo: Callable[[], None]) -> None:
    """Have `run_script` call `undo` where its `main` ends by an error: for what would stand in the
    way of the same command, mended."""
    _undo.append(undo)


def undo_all() -> None:
    """Call what was given to `undo_if_failed`, the last first, each once."""
    while _undo:
        _undo.pop()()


class OtherProcesses(Protocol):
    """What `run_script` needs of the other processes of a job."""

    def before_saying(self) -> None:
        """This process fails. Does not return where it does so because another one has: that one
        says why."""

    def after_saying(self) -> None:
        """Let the others hear that this process has failed."""


def fail_with(others: OtherProcesses) -> None:
    """Have `run_script` tell the other processes where its `main` ends by an error."""
    _others.append(others)


class Stopped(SystemExit):
    """The end of a program that was told to stop and has said `line`. status: 143 for SIGTERM, 138
    for SIGUSR1, 130 for Ctrl-C."""

    def __init__(self, status: int, line: str) -> None:
        super().__init__(status)
        self.line = printable(line)


class AllDone(SystemExit):
    """The end of a program whose work was done by an earlier start of the same command. line: says
    so. status: that start's own."""

    def __init__(self, line: str, status: int = 0) -> None:
        super().__init__(status)
        self.line = printable(line)


def run_script(main: Callable[[], None]) -> None:
    """Run a script's `main`; a `UserError` ends the program with its line on stderr and status 2,
    Ctrl-C with 130.

    So does a path that no system call takes, wherever it is met first: one that is too long, or
    whose links lead in a circle.

    Data workers go with the end of `main`, whichever it is. After an error of any kind, what was
    given to `undo_if_failed` is called, the last first, and the processes of `fail_with` end too.
    Behind a launcher's report of the end, the last line is said once more.
    """
    try:
        _run(main)
    except UserError as error:
        *traceback_lines, message = str(error).strip().splitlines() or ["no reason given"]
        if (
            traceback_lines
        ):  # a data worker's error arrives with it in front; its last line is `module.Type: message`
            message = re.sub(r"^[\w.]+: ", "", message)
        say_last(f"error: {message}")
        _tell_others()
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        say_last(CTRL_C)
        _tell_others()
        raise SystemExit(130) from None
    except AllDone as end:
        if is_first_launched():
            say(end.line)
        raise
    except Stopped as end:
        repeat_behind_launchers(end.line)
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in FAULTS_OF_A_NAME and error.filename is not None:
            say_last(
                f"error: {os.fsdecode(error.filename)} cannot be used: {error.strerror}; give another path"
            )
            _tell_others()
            raise SystemExit(2) from None
        if not _others:
            raise
        traceback.print_exc()  # as Python would, but before the others hear of it, and a launcher of them
        _tell_others()
        raise SystemExit(1) from None


def _tell_others() -> None:
    for others in _others:
        others.after_saying()


def say_last(line: str) -> None:
    """The last line of a program that ends early, on stderr; and behind the report of its launcher.
    At most 300 printable characters."""
    line = fitted(line)
    with suppress(OSError):  # of a pipe whose reader has gone
        sys.stdout.flush()  # what waits for a log file was said before
    say(line, file=sys.stderr)
    repeat_behind_launchers(line)


def _run(main: Callable[[], None]) -> None:
    _undo.clear()
    _others.clear()
    try:
        main()
    except BaseException as error:
        end_data_workers()
        if not isinstance(error, SystemExit):  # who was told to stop can go on
            for others in _others:
                others.before_saying()
            undo_all()
        raise
    finally:
        end_data_workers()
        _undo.clear()
