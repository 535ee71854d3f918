"""How a program tells its user what went wrong: one line, exit status 2."""

import sys
from collections.abc import Callable


class UserError(ValueError):
    """A mistake that the user can mend. The message is one line: what is wrong, where, and the cure."""


def run_script(main: Callable[[], None]) -> None:
    """Run a script's `main`; a `UserError` ends the program with its line on stderr and status 2, without a traceback."""
    try:
        main()
    except UserError as error:
        # a data worker's error arrives with its traceback in front; its last line is the message
        message = (str(error).strip().splitlines() or ["no reason given"])[-1].removeprefix("vision_core.errors.UserError: ")
        print(f"error: {message}", file=sys.stderr)
        raise SystemExit(2) from None
