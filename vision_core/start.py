"""Start a program: its options are read and checked before anything heavy is imported.

from vision_core.start import look_first

if __name__ == "__main__":
    look_first(Arguments, __doc__)  # --help and mistakes are answered here, within a second

import torch  # and all else that takes long

def main() -> None:
    args = parse_arguments(Arguments, description=__doc__)
"""

import sys
from collections.abc import Callable
from typing import Any

from vision_core.arguments import parse_arguments
from vision_core.errors import CTRL_C, run_script, say_last
from vision_core.printable import say
from vision_core.processes.launchers import is_first_launched, launchers_above


def look_first(
    arguments_type: type,
    description: str,
    check: Callable[[Any], None] | None = None,
    loading: str = "torch and transformers",
    program: str = "",
) -> None:
    """Read the options of this process as `main` will, and end it where they are `--help` or wrong.

    Then say that libraries are loaded. check: of the options that were read, with nothing heavy.
    program: its name in `--help`, where it is not that of the file.
    """

    def look() -> None:
        args = parse_arguments(arguments_type, description=description, program=program)
        if check is not None:
            check(args)

    launchers_above()  # now: one that dies during the imports must be known
    run_script(look)
    sys.excepthook = _one_line_for_ctrl_c
    if is_first_launched():
        say(f"loading {loading} ...", file=sys.stderr)


def _one_line_for_ctrl_c(kind: type, error: BaseException, trace: Any) -> None:
    """For the time of the imports; Python then ends by the signal itself, which the shell knows as
    130."""
    if kind is KeyboardInterrupt:
        say_last(CTRL_C)
    else:
        sys.__excepthook__(kind, error, trace)
