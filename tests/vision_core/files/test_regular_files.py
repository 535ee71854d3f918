"""Opening files below a folder: the links that are allowed, and a folder that becomes a link at the
worst moment."""

import errno
import os
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from vision_core.errors import UserError
from vision_core.files import regular_files
from vision_core.files.regular_files import (
    ANYWHERE,
    data_roots,
    open_regular_file,
    read_regular_file,
    refuse_special_files,
)
from vision_core.unreadable import UnreadableImage

SECRET, OURS = b"secret", b"ours"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """data/in/file and data/link -> in; outside/file, and data/in can become a link to it."""
    for folder, content in (("data/in", OURS), ("outside", SECRET)):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "file").write_bytes(content)
    (tmp_path / "data" / "link").symlink_to("in")
    return Path(os.path.realpath(tmp_path))


def swap(place: Path) -> None:
    """The folder makes room for a link that leads out."""
    (place / "data" / "in").rename(place / "data" / "aside")
    (place / "data" / "in").symlink_to(place / "outside")


@pytest.mark.parametrize("name", ["in/file", "link/file"])
@pytest.mark.parametrize("moment", range(1, 6))
def test_a_folder_that_becomes_a_link_between_any_two_steps_is_not_followed(place, monkeypatch, name, moment):
    """`moment` counts the calls that look at the file system: the swap is done in front of that
    one."""
    steps = iter(range(1, 100))
    done = []

    def counted(function):
        def call(*arguments, **options):
            if next(steps) == moment:
                swap(place)
                done.append(function.__name__)
            return function(*arguments, **options)

        return call

    monkeypatch.setattr(os, "open", counted(os.open))
    monkeypatch.setattr(os, "stat", counted(os.stat))
    monkeypatch.setattr(os.path, "realpath", counted(os.path.realpath))
    try:
        data = read_regular_file(str(place / "data" / name), str(place / "data"))
    except UnreadableImage as error:
        assert error.reason in ("outside_the_data_folder", "cannot_be_opened", "missing")
        data = OURS
    assert data == OURS and (done or moment > 3)


def test_a_folder_that_is_swapped_all_the_time_gives_nothing_from_outside(place):
    """Another thread renames a folder and a link over each other while the file is read a thousand
    times, and until it was read."""
    ended, found, reads, deadline = threading.Event(), set(), 0, time.monotonic() + 60
    real, link = place / "data" / "in", place / "data" / "way_out"
    link.symlink_to(place / "outside")

    def swapping():
        aside = place / "data" / "aside"
        while not ended.is_set():
            real.rename(aside), link.rename(real), real.rename(link), aside.rename(real)

    thread = threading.Thread(target=swapping)
    thread.start()
    try:
        while reads < 1000 or (OURS not in found and time.monotonic() < deadline):
            reads += 1
            try:
                found.add(read_regular_file(str(real / "file"), str(place / "data")))
            except UnreadableImage as error:
                found.add(error.reason)
    finally:
        ended.set()
        thread.join()
    assert OURS in found and SECRET not in found


def test_links_that_lead_nowhere_else_are_followed(place):
    (place / "data" / "file_link").symlink_to("in/file")
    for name in ("in/file", "link/file", "file_link", "in/../link/./file"):
        assert read_regular_file(os.path.join(place, "data", name), *data_roots(place / "data")) == OURS


def test_a_snapshot_of_the_hubs_cache_and_followed_links_still_work(place):
    repository = place / "datasets--a--b"
    snapshot = repository / "snapshots" / "0" / "train"
    (repository / "blobs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    (repository / "blobs" / "hash").write_bytes(OURS)
    (snapshot / "file").symlink_to("../../../blobs/hash")
    (snapshot / "out").symlink_to(place / "outside" / "file")
    assert read_regular_file(str(snapshot / "file"), *data_roots(snapshot)) == OURS
    with pytest.raises(UnreadableImage, match="outside_the_data_folder"):
        read_regular_file(str(snapshot / "out"), *data_roots(snapshot))
    assert read_regular_file(str(snapshot / "out"), *data_roots(snapshot, follow_links=True)) == SECRET
    assert data_roots(snapshot, follow_links=True) == (ANYWHERE,)


def test_a_folder_that_may_be_passed_but_not_listed(place):
    (place / "data" / "in").chmod(0o311)
    try:
        assert read_regular_file(str(place / "data" / "in" / "file"), str(place / "data")) == OURS
    finally:
        (place / "data" / "in").chmod(0o755)


def test_nothing_stays_open(place):
    before = len(os.listdir("/proc/self/fd"))
    for name in (
        "in/file",
        "link/file",
        "in",
        "absent/file",
        "in/file/below",
        "a\0b",
        "n" * 300,
        "../outside/file",
    ) * 3:
        with suppress(UnreadableImage):
            open_regular_file(os.path.join(place, "data", name), str(place / "data")).close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_file_that_grows_while_it_is_read_is_bounded(place, monkeypatch):
    with pytest.raises(UnreadableImage, match="file_too_large"):
        read_regular_file(place / "data" / "in" / "file", most_bytes=3)
    assert read_regular_file(place / "data" / "in" / "file", most_bytes=4) == OURS


def test_without_o_path_folders_are_opened_for_reading(place, monkeypatch):
    """As on systems that are no Linux."""
    monkeypatch.setattr(regular_files, "FOLDER", os.O_DIRECTORY | os.O_NOFOLLOW | os.O_RDONLY)
    assert read_regular_file(str(place / "data" / "link" / "file"), str(place / "data")) == OURS


def test_an_open_that_fails_for_another_reason_is_told(place, monkeypatch):
    def no_more(*_, **__):
        raise OSError(errno.EMFILE, "too many open files")

    monkeypatch.setattr(os, "open", no_more)
    with pytest.raises(UnreadableImage, match="cannot_be_opened"):
        read_regular_file(str(place / "data" / "in" / "file"), str(place / "data"))


def test_special_files_of_a_folder_are_named(place):
    refuse_special_files(place / "data", at_any_depth=True)
    os.mkfifo(place / "data" / "in" / "pipe")
    refuse_special_files(place / "data")
    with pytest.raises(UserError, match="in/pipe is a pipe"):
        refuse_special_files(place / "data", at_any_depth=True)
