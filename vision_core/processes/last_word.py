"""Say a program's last line once more behind the traceback of the launcher that started it.

`accelerate launch`, torchrun and deepspeed report that their child has failed, in up to a hundred
lines, and they do so after the child has ended. So the child leaves a small process behind, this
file, that waits until the launcher has said what it has to say. It has no part in any exit status.
On a terminal it writes only while the launcher is still there, so never behind the shell's next
prompt.
"""

import os
import select
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

# As a file of its own it is started by its path, without site-packages: it has to start quickly.
IS_FILE = __name__ == "__main__"
if not IS_FILE:
    from vision_core.processes.launchers import launchers_above

# torchrun gives its other processes 30; a launcher that lives longer has not failed with us, it
# starts them again
PATIENCE_SECONDS = 60.0
READY_SECONDS = 5.0
POLL_SECONDS = 0.002
SIGINT_BIT = 1 << 1  # of signal 2


def repeat_behind_launchers(line: str) -> None:
    """Have `line` written to stderr once more when the outermost launcher of this process has
    reported our end.

    Without a launcher nothing happens.
    """
    if launchers_above():
        pid, started = launchers_above()[-1]
        command = [sys.executable, "-I", "-S", __file__, str(pid), started, line]
        with suppress(OSError):  # no memory, no process: the line has been said once
            left_behind = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, start_new_session=True
            )
            # it has to watch before the launcher learns of our end
            select.select([left_behind.stdout], [], [], READY_SECONDS)


def wait_and_write(pid: int, started: str, line: str) -> None:
    """In the process that is left behind. Of the processes of one launcher, the first that comes
    writes."""
    with socket.socket(socket.AF_UNIX) as mine:
        try:
            mine.bind(f"\0last word behind {pid} {started}")
        except OSError:
            return
        if not _is_there(pid, started):
            return  # it has said its words before ours
        is_python = _catches_ctrl_c(pid)
        with suppress(OSError):
            os.write(1, b"ready")
        deadline = time.monotonic() + PATIENCE_SECONDS
        while (there := _is_there(pid, started)) and not (is_python and not _catches_ctrl_c(pid)):
            if time.monotonic() > deadline:
                return
            time.sleep(POLL_SECONDS)
        if there or not os.isatty(2):
            with suppress(OSError):
                os.write(2, f"{line}\n".encode())


def _catches_ctrl_c(pid: int) -> bool:
    """Whether a process handles SIGINT.

    Python does until its very end, when all tracebacks are written and only memory is left to free.
    """
    with suppress(OSError, StopIteration, ValueError):
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        caught = next(line for line in lines if line.startswith("SigCgt:"))
        return bool(int(caught.split()[1], 16) & SIGINT_BIT)
    return False


def _is_there(pid: int, started: str) -> bool:
    """Whether the process of this id and start time lives."""
    with suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return fields[0] != "Z" and fields[19] == started
    return False


if IS_FILE and os.fork() == 0:  # nobody's child: deepspeed kills those of every process of the job
    wait_and_write(int(sys.argv[1]), sys.argv[2], sys.argv[3])
