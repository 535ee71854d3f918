"""Find out which launcher started this process.

Imports nothing heavy: a script looks before anything else, for a launcher may die while it starts.
"""

import os
import sys
import sysconfig
from functools import cache
from pathlib import Path

# Programs that start a training script as their child. `accelerate launch` with one process and
# `deepspeed` on one machine die of SIGTERM without telling the script, which would train on unseen.
LAUNCHERS = {"accelerate", "accelerate-launch", "torchrun", "deepspeed"}
LAUNCHER_MODULES = {
    "accelerate.commands.launch",
    "torch.distributed.run",
    "deepspeed.launcher.launch",
    "deepspeed.launcher.runner",
}


@cache
def launchers_above() -> list[tuple[int, str]]:
    """The launchers among this process's ancestors when it was first asked, nearest first, as
    (process id, start time).

    [] where there is no /proc.
    """
    found = []
    pid = os.getppid()
    while _is_launcher(pid) and (status := _status(pid)) is not None:
        found.append((pid, status[19]))
        pid = int(status[1])
    return found


def is_alive(launcher: tuple[int, str]) -> bool:
    """Whether a launcher that `launchers_above` found is still there."""
    pid, started = launcher
    return _start_time(pid) == started


def is_first_launched() -> bool:
    """Whether this is the first, or the only, process of a launcher, also before its processes have
    joined."""
    return os.environ.get("RANK", "0") == "0"


def is_program(module: str, command: str = "") -> bool:
    """Whether this process is `python -m module`, or the installed `command`.

    For a package, which is imported before its program runs.
    """
    words = getattr(sys, "orig_argv", [])
    if sys.argv[0] == "-m":  # so it reads while Python imports the packages that the module lies in
        return "-m" in words and module in words[words.index("-m") + 1 :][:1]
    scripts = Path(sysconfig.get_path("scripts"))
    return bool(command) and Path(sys.argv[0]).resolve() == (scripts / command).resolve()


def _is_launcher(pid: int) -> bool:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")[:4]
    except OSError:
        return False
    return any(Path(word).name in LAUNCHERS or word in LAUNCHER_MODULES for word in words)


def _start_time(pid: int) -> str | None:
    """When a process began, in the kernel's ticks: with the id it names one process for ever. None
    for a dead one."""
    status = _status(pid)
    return None if status is None or status[0] == "Z" else status[19]


def _status(pid: int) -> list[str] | None:
    """The fields of /proc/<pid>/stat from the third on (proc(5)); the second, the name, may hold
    spaces."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
