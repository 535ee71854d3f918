"""The bar in terminals of several widths, as a run draws it."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CODE = """
from vision_core.progress import show_loss, step_bar
bar = step_bar(625_000, 312_000, "pretraining")
bar.mininterval = 0
show_loss(bar, 12.3456, 123_456.0)
for _ in range(3):
    bar.update(1)
bar.close()
"""


def drawn(columns: int) -> list[str]:
    """The lines that a terminal of so many columns gets."""
    terminal, end = pty.openpty()
    fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    process = subprocess.Popen([sys.executable, "-c", CODE], stdin=end, stdout=end, stderr=end, cwd=ROOT)
    os.close(end)
    text = b""
    try:
        while part := os.read(terminal, 65536):
            text += part
    except OSError:  # Linux says so at the end
        pass
    os.close(terminal)
    assert process.wait(30) == 0, text.decode()
    return [line for line in re.split(r"[\r\n]+|\x1b\[A", text.decode()) if line.strip()]


@pytest.mark.parametrize("columns", [80, 100, 160])
def test_a_line_fits_and_says_loss_rate_and_time_left(columns):
    lines = drawn(columns)
    assert lines and all(len(line) <= columns for line in lines)
    assert "pretraining  50%|" in lines[-1] and "312003/625000" in lines[-1] and "loss 12.346" in lines[-1]
    assert re.search(r"\d+:\d\d<[\d:?]+, +[\d.?]+(step/s|s/step)", lines[-1])
    assert ("123456 img/s" in lines[-1]) == (columns >= 100)


@pytest.mark.parametrize("columns", ["100", None])
def test_in_a_file_it_is_short_enough_too(columns):
    given = {name: value for name, value in os.environ.items() if name != "COLUMNS"} | (
        {"COLUMNS": columns} if columns else {}
    )
    text = subprocess.run(
        [sys.executable, "-c", CODE], stderr=subprocess.PIPE, cwd=ROOT, env=given, check=True
    ).stderr.decode()
    assert all(len(line) <= 100 for line in re.split(r"[\r\n]+", text)) and "loss 12.346" in text
