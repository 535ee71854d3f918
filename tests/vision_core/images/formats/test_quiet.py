"""What image libraries say of damaged files does not reach descriptor 2, from any thread, and
everything else does."""

import io
import logging
import os
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vision_core.images.decode import UnreadableImage, decode_image
from vision_core.images.formats.quiet import LOGGERS, quiet_libraries

ROOT = Path(__file__).parents[4]
LIBTIFF = """
import io, os, sys
from PIL import Image
from vision_core.images.decode import UnreadableImage, decode_image

data = sys.stdin.buffer.read()
if sys.argv[1] == "pillow":
    Image.open(io.BytesIO(data)).load()
for _ in range(20):
    try:
        decode_image(data)
    except UnreadableImage as error:
        print(error.reason)
"""


def fax() -> bytes:
    """A TIFF of which libtiff writes a line for each of its rows."""
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 2, (64, 64)).astype(bool)).save(
        stream, "TIFF", compression="group4"
    )
    data = bytearray(stream.getvalue())
    data[len(data) // 3 : len(data) // 3 + 40] = b"\xff" * 40
    return bytes(data)


def run(what: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", LIBTIFF, what], cwd=ROOT, input=fax(), capture_output=True, timeout=120
    )


def test_libtiff_says_nothing_and_its_errors_arrive() -> None:
    """Pillow alone writes lines: the fault is there, and is still told of as an exception or read
    over as Pillow does."""
    quiet, loud = run("decoder"), run("pillow")
    assert b"Fax" in loud.stderr
    assert quiet.returncode == 0 and quiet.stderr == b""


def test_a_tiff_whose_strip_is_cut_has_its_reason(capfd: pytest.CaptureFixture) -> None:
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8)).save(
        stream, "TIFF", compression="tiff_lzw"
    )
    data = bytearray(stream.getvalue())
    data[200:2000] = bytes(1800)
    with pytest.raises(UnreadableImage, match="corrupt|truncated"):
        decode_image(bytes(data))
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("name", LOGGERS)
def test_log_lines_of_libraries_are_kept_back_while_an_image_is_read(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    logger = logging.getLogger(name)
    with quiet_libraries():
        logger.error("of the image")
    logger.error("of somebody else")
    assert "of the image" not in caplog.text
    if logger.propagate:
        assert "of somebody else" in caplog.text


def test_our_own_log_lines_and_those_of_other_threads_are_not(caplog: pytest.LogCaptureFixture) -> None:
    with quiet_libraries():
        logging.getLogger("vision_core").warning("our own")
        thread = threading.Thread(target=logging.getLogger("tifffile").warning, args=("of another thread",))
        thread.start()
        thread.join()
    assert "our own" in caplog.text and "of another thread" in caplog.text


def test_warnings_come_back_whatever_order_threads_end_in() -> None:
    """Two threads, of which the first to begin ends first: with filters of their own, the second
    would bring back those of the first for ever."""
    began, ended = threading.Event(), threading.Event()
    with warnings.catch_warnings():
        before = list(warnings.filters)

        def first() -> None:
            with quiet_libraries():
                began.set()
                ended.wait(10)

        thread = threading.Thread(target=first)
        thread.start()
        began.wait(10)
        with quiet_libraries():
            ended.set()
            thread.join()
            assert warnings.filters != before
        assert warnings.filters == before


def test_nested_blocks_and_errors_leave_nothing_behind(recwarn: pytest.WarningsRecorder) -> None:
    before = list(warnings.filters)
    with pytest.raises(ZeroDivisionError), quiet_libraries(), quiet_libraries():
        raise ZeroDivisionError
    assert warnings.filters == before
    with quiet_libraries():
        warnings.warn_explicit("of Pillow", UserWarning, "PIL/Image.py", 1, module="PIL.Image")
        warnings.warn_explicit("of the program", UserWarning, "program.py", 1, module="program")
    assert [str(warning.message) for warning in recwarn] == ["of the program"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_worker_reads_while_a_thread_of_its_parent_does() -> None:
    inside, done = threading.Event(), threading.Event()

    def reader() -> None:
        with quiet_libraries():
            inside.set()
            done.wait(10)

    thread = threading.Thread(target=reader)
    thread.start()
    inside.wait(10)
    child = os.fork()
    if child == 0:
        with quiet_libraries():
            os._exit(7)
    done.set()
    thread.join()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
