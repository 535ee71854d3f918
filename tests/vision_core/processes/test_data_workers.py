"""Data workers end with the program that started them, however it ends: they ignore the signal by
which Python would end them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
PROGRAM = """
import sys
from torch.utils.data import DataLoader
from vision_core.processes.data_workers import leave_signals_to_parent
from vision_core.errors import UserError, run_script

def numbers():
    return DataLoader(range(1000), batch_size=2, num_workers=2, worker_init_fn=leave_signals_to_parent)

def main():
    batches = iter(numbers())
    next(batches)
    keep.append(batches)  # as a trainer that is alive, or the frames of an error, do
    END

keep = []
START
"""
ENDS = {
    "a mistake": ("raise UserError('no')", "run_script(main)", 2, "error: no\n"),
    "another error": ("raise RuntimeError('no')", "run_script(main)", 1, "RuntimeError: no\n"),
    "the end": ("pass", "run_script(main)", 0, ""),
    "an exit": ("sys.exit(3)", "run_script(main)", 3, ""),
    "Ctrl-C": ("raise KeyboardInterrupt", "run_script(main)", 130, "stopped by Ctrl-C\n"),
    "a mistake in a program of one's own": ("raise UserError('no')", "main()", 1, "UserError: no\n"),
    "the end of a program of one's own": ("pass", "main()", 0, ""),
}


@pytest.mark.timeout(100)
@pytest.mark.parametrize("end", ENDS)
def test_no_worker_outlives_or_holds_up_its_program(end):
    last, started, status, said = ENDS[end]
    code = PROGRAM.replace("END", last).replace("START", started)
    # a session of its own, so that whoever is left of it can be found
    program = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    try:
        _, stderr = program.communicate(timeout=60)  # a worker that was left would hold the pipe open
    finally:
        left = processes_of(program.pid)
        for pid in left:
            os.kill(pid, 9)
    assert (program.returncode, left) == (status, []) and stderr.endswith(said)


def processes_of(session: int) -> list[int]:
    """Those that live, by the session's number in /proc/<pid>/stat."""
    stats = [
        path.read_text().rpartition(")")[2].split() + [path.parent.name]
        for path in Path("/proc").glob("[0-9]*/stat")
        if path.exists()
    ]
    return [int(fields[-1]) for fields in stats if int(fields[3]) == session and fields[0] != "Z"]
