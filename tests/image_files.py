"""Hostile image files for tests: they are read in a child process, so that a test sees it where the
child ends by a signal."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[1]
MOST_SECONDS = 5
MOST_MEGABYTES = 1024


def smooth(channels: int, side: int = 48, dtype: type = np.uint8, top: int = 255) -> np.ndarray:
    y, x = np.mgrid[:side, :side]
    planes = [(np.sin(x / 7 + band) + np.cos(y / 9 - band) + 2) / 4 * top for band in range(channels)]
    values = np.stack(planes, axis=-1).astype(dtype)
    return values[:, :, 0] if channels == 1 else values


def saved(picture: Image.Image, format: str, **options) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, format, **options)
    return stream.getvalue()


READER = """
import json, os, sys, time
from pathlib import Path
from vision_core.images.decode import UnreadableImage, count_parts, decode_image, read_stored
from vision_core.images.pixel_options import take_pixel_options

def memory():
    lines = open("/proc/self/status").read().splitlines()
    return {line.split()[0]: int(line.split()[1]) / 1024 for line in lines if line.startswith(("VmHWM", "VmRSS"))}

scaled = take_pixel_options("x", {"scale": "0,4095"})[0]
ways = (decode_image, read_stored, count_parts, lambda data: decode_image(data, 1, scaled, 0))
for path in sorted(Path(sys.argv[1]).iterdir()):
    data = path.read_bytes()
    for way in ways if sys.argv[2] == "all" else ways[:1]:
        Path("/proc/self/clear_refs").write_text("5")
        held, start, reason = memory()["VmRSS:"], time.monotonic(), None
        try:
            way(data)
        except UnreadableImage as error:
            reason = error.reason
        except BaseException as error:
            reason = f"OTHER {type(error).__name__} {error}"
        print(json.dumps([path.name, reason, time.monotonic() - start, memory()["VmHWM:"] - held]), flush=True)
"""


def outcomes(folder: Path, files: dict[str, bytes], ways: str) -> dict[str, list[str | None]]:
    """The reasons of each file. Nothing else may happen: no signal, no other error, no long time,
    no large memory, no word on descriptor 2."""
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    command = [sys.executable, "-c", READER, str(folder), ways]
    done = subprocess.run(
        command,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
        env={**os.environ, "PYTHONFAULTHANDLER": ""},
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, (done.returncode, lines[-1:], done.stderr[-500:])
    assert done.stderr == ""
    reasons: dict[str, list[str | None]] = {}
    for name, reason, seconds, megabytes in lines:
        assert (
            not (reason or "").startswith("OTHER") and seconds < MOST_SECONDS and megabytes < MOST_MEGABYTES
        ), (name, reason, seconds, megabytes)
        reasons.setdefault(name, []).append(reason)
    return reasons
