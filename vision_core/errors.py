"""How a program tells its user what went wrong: one line, exit status 2."""

import re
import sys
from collections.abc import Callable

_undo: list[Callable[[], None]] = []


class UserError(ValueError):
    """A mistake that the user can mend. The message is one line: what is wrong, where, and the cure."""


def undo_if_failed(undo: Callable[[], None]) -> None:
    """Have `run_script` call `undo` where its `main` ends by an error: for what would stand in the way of the same command, mended."""
    _undo.append(undo)


def run_script(main: Callable[[], None]) -> None:
    """Run a script's `main`; a `UserError` ends the program with its line on stderr and status 2, without a traceback.

    After an error of any kind, what was given to `undo_if_failed` is called, the last first.
    """
    try:
        _run(main)
    except UserError as error:
        *traceback, message = str(error).strip().splitlines() or ["no reason given"]
        if traceback:  # a data worker's error arrives with it in front, and its last line is `module.Type: message`
            message = re.sub(r"^[\w.]+: ", "", message)
        print(f"error: {message}", file=sys.stderr)
        raise SystemExit(2) from None


def _run(main: Callable[[], None]) -> None:
    _undo.clear()
    try:
        main()
    except Exception:
        while _undo:
            _undo.pop()()
        raise
    finally:
        _undo.clear()
