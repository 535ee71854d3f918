"""Errors for people, and how a program ends: one line on stderr and an exit status."""

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

    def after_saying(self, status: int) -> None:
        """Let the others hear that this process has failed, and that they are to end with
        `status`."""


def fail_with(others: OtherProcesses) -> None:
    """Have `run_script` tell the other processes where its `main` ends by an error."""
    _others.append(others)


class Stopped(SystemExit):
    """The end of a program that was told to stop and has said `line`. status: 143 for SIGTERM, 138
    for SIGUSR1, 130 for Ctrl-C."""

    def __init__(self, status: int, line: str) -> None:
        super().__init__(status)
        self.line = printable(line)


class StoppedBeforeTraining(Stopped):
    """The end of a program that was told to stop while it got ready: `run_script` says the line,
    and takes back what a start that fails takes back.
    """


class AllDone(SystemExit):
    """The end of a program whose work was done by an earlier start of the same command. line: says
    so. status: that start's own."""

    def __init__(self, line: str, status: int = 0) -> None:
        super().__init__(status)
        self.line = printable(line)


def run_script(main: Callable[[], None]) -> None:
    """Run a script's `main`. A `UserError` ends the program with its line on stderr and status 2,
    Ctrl-C ends it with status 130.

    A path that no system call takes, because it is too long or its links lead in a circle, is a
    user's mistake too, wherever it is met first.

    Data workers end with `main`, however it ends. After an error of any kind, and after a stop
    before training, what was given to `undo_if_failed` is called, the last first, and the processes
    of `fail_with` end too. The last line is said once more behind the report of a launcher.
    """
    try:
        _run(main)
    except UserError as error:
        raise _ended(f"error: {_message_of(error)}", 2) from None
    except KeyboardInterrupt:
        raise _ended(CTRL_C, 130) from None
    except AllDone as end:
        if is_first_launched():
            say(end.line)
        raise
    except StoppedBeforeTraining as end:
        traceback.clear_frames(end.__traceback__)  # the loops that were cut take their progress bars along
        if is_first_launched():
            say(end.line)
        repeat_behind_launchers(end.line)
        _tell_others(end.code)
        raise
    except Stopped as end:
        repeat_behind_launchers(end.line)
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in FAULTS_OF_A_NAME and error.filename is not None:
            path = os.fsdecode(error.filename)
            line = f"error: {path} cannot be used: {error.strerror}; give another path"
            raise _ended(line, 2) from None
        if not _others:
            raise
        # Python would print it later: the other processes hear of it first, and a launcher of them
        traceback.print_exc()
        _tell_others()
        raise SystemExit(1) from None


def _ended(line: str, status: int) -> SystemExit:
    """Say a program's last line, tell the other processes, and return the exit to raise."""
    say_last(line)
    _tell_others()
    return SystemExit(status)


def _message_of(error: UserError) -> str:
    """The last line of an error. A data worker puts a traceback in front of its error, whose last
    line is `module.Type: message`."""
    *traceback_lines, message = str(error).strip().splitlines() or ["no reason given"]
    return re.sub(r"^[\w.]+: ", "", message) if traceback_lines else message


def _tell_others(status: int = 2) -> None:
    for others in _others:
        others.after_saying(status)


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
        if not isinstance(error, SystemExit) or isinstance(
            error, StoppedBeforeTraining
        ):  # who is stopped later can go on
            for others in _others:
                others.before_saying()
            undo_all()
        raise
    finally:
        end_data_workers()
        _undo.clear()
