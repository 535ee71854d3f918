"""Files that are there whole or not at all, and what is left of processes that were killed while
they wrote."""

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vision_core.files.files_aside import SECONDS_OF_A_DAY, THIS_MACHINE, remove_litter, write_whole

ROOT = Path(__file__).parents[3]
# writes aside for ever: it stands in the middle of a file when it is stopped or killed
WRITER = """
import sys, time
from pathlib import Path
from vision_core.files.files_aside import _locked_file
with _locked_file(Path(sys.argv[1])) as (aside, descriptor):
    print(aside, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def writer(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    yield process, Path(process.stdout.readline().strip())
    process.kill()
    process.wait()


def test_a_file_reaches_the_disk_before_it_is_seen(tmp_path, monkeypatch):
    """The file is fsynced before the rename, the folder after it; a new folder's name in its parent
    too."""
    events = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(
        os, "fsync", lambda fd: (events.append(Path(os.readlink(f"/proc/self/fd/{fd}")).name), fsync(fd))[1]
    )
    monkeypatch.setattr(os, "replace", lambda a, b: (events.append("rename"), replace(a, b))[1])
    write_whole(tmp_path / "new" / "file", b"content", tmp_path)
    assert events[0] == tmp_path.name and events[1].startswith(".tmp-") and events[2:] == ["rename", "new"]
    assert (tmp_path / "new" / "file").read_bytes() == b"content" and os.listdir(tmp_path) == ["new"]


def test_the_first_file_stays_where_that_is_asked_for(tmp_path):
    for content in (b"first", b"second"):
        write_whole(tmp_path / "kept", content, tmp_path, keep_first=True)
        write_whole(tmp_path / "replaced", content, tmp_path)
    assert (tmp_path / "kept").read_bytes() == b"first" and (tmp_path / "replaced").read_bytes() == b"second"
    assert sorted(os.listdir(tmp_path)) == ["kept", "replaced"]


def test_nothing_is_left_of_a_write_that_fails(tmp_path):
    (tmp_path / "file").write_bytes(b"old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError):
            write_whole(tmp_path / "file", bytes(5000), tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert os.listdir(tmp_path) == ["file"] and (tmp_path / "file").read_bytes() == b"old"


def test_litter_goes_once_its_writer_is_dead(writer, tmp_path):
    process, aside = writer
    process.send_signal(signal.SIGSTOP)
    remove_litter(tmp_path.iterdir())
    assert aside.exists()  # of a process that lives, if it does nothing
    process.send_signal(signal.SIGKILL)
    process.wait()
    remove_litter(tmp_path.iterdir())
    assert not aside.exists()


def test_the_litter_of_another_machine_is_left_for_a_day(tmp_path):
    other = f"{int(THIS_MACHINE, 16) ^ 1:08x}"
    names = [f".tmp-{other}-1-00000000", ".tmp-0123-77", "0a.tmp-77", ".tmp-folder-77"]
    for name in names[:3]:
        (tmp_path / name).write_bytes(b"half")
    (tmp_path / names[3]).mkdir()
    (tmp_path / names[3] / "shard").write_bytes(b"half")
    remove_litter(tmp_path.iterdir())
    assert sorted(os.listdir(tmp_path)) == sorted(names)
    old = time.time() - SECONDS_OF_A_DAY - 10
    for path in tmp_path.rglob("*"):
        os.utime(path, (old, old))
    remove_litter(tmp_path.iterdir())
    assert os.listdir(tmp_path) == []
