"""A dry run ends, by itself and with its workers, also where its images cannot be read; started as users start it, for Python's own end is part of it."""

import sys
import time

import pytest
from PIL import Image


@pytest.mark.timeout(280)
def test_a_dry_run_on_unreadable_images_ends_in_one_line_and_leaves_no_process(runs, tmp_path):
    """Two can be read, so that the run gets as far as its data workers, of which it has one by default."""
    images = tmp_path / "images"
    images.mkdir()
    for number in range(80):
        (images / f"{number}.png").write_bytes(b"no image")
    for number in range(2):
        Image.new("RGB", (64, 64)).save(images / f"{number}.png")
    run = runs.launch([sys.executable], "pretrain/dinov2.py", "--dry_run", "--dataset", f"folder:{images}", "--eval_dataset", "none")
    assert run.wait(240) == 2, run.printed
    ended = time.monotonic()
    while run.processes() and time.monotonic() < ended + 5:
        time.sleep(0.05)
    lines = run.printed.splitlines()
    assert not run.processes() and lines[0] == "loading torch and transformers ..."
    assert lines[-1].startswith("error: 20 images in a row could not be read, the last was ") and len(lines) == 2, run.printed
    assert not (tmp_path / "outputs").exists() and not (runs.folder / "outputs").exists()
