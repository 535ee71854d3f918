"""What the tests of hostile inputs share: a place with files of every unreadable kind, and the
assertion that a call ends in one line, soon.

The inputs are harmless to everything but the reader that is not careful: where a library itself
would crash on deeper or larger ones, the guard in front of it is shown with small ones. Nothing
outside of the data's folder may be read.
"""

import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import datasets  # noqa: F401  here, so that no case is charged with the time of an import
import open_clip  # noqa: F401
import pytest
from PIL import Image

from fusion.conversations.sources import open_conversations
from vision_core.arguments import option, parse_arguments
from vision_core.errors import run_script
from vision_core.images.open_source import open_source

SECONDS = 5
MOST_CHARACTERS = 300
SECRET = "what lies outside of the data's folder"
ESCAPE = "\x1b[31mred\x1b]0;title\x07"
OVERRIDE = "gpj.\u202eexe"
LONG = "n" * 5000
DEEP = "[" * 100_000
UNREADABLE = ("pipe", "socket", "device", "endless", "folder", "dangling", "circle", "absent")
TURNS = [{"from": "human", "value": "?"}, {"from": "gpt", "value": "yes"}]


@dataclass
class Options:
    """Those of a program, as far as it matters here."""

    dataset: str = option("scenes", "data")
    widths: list[int] = option([1], "numbers")
    learning_rate: float = option(1.0, "a number")


class Place:
    """A folder with data, something secret beside it, and files of every unreadable kind, whatever
    ending they are asked to have."""

    def __init__(self, root: Path) -> None:
        self.data, self.outside = root / "data", root / "outside"
        self.data.mkdir()
        self.outside.mkdir()
        (self.outside / "secret.txt").write_text(SECRET)
        Image.new("RGB", (16, 16), "red").save(self.outside / "secret.png")
        Image.new("RGB", (16, 16)).save(self.data / "good.png")

    def of_kind(self, kind: str, ending: str) -> Path:
        path = self.data / f"{kind}{ending}"
        if kind == "pipe":
            os.mkfifo(path)
        elif kind == "socket":
            self._socket(path)
        elif kind == "device":
            path.symlink_to("/dev/null")
        elif kind == "endless":
            path.symlink_to("/dev/zero")
        elif kind == "folder":
            path.mkdir()
        elif kind == "dangling":
            path.symlink_to(self.data / "nothing")
        elif kind == "circle":
            path.symlink_to(path)
        return path

    def write(self, name: str, content: str | bytes) -> Path:
        path = self.data / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    def _socket(self, path: Path) -> None:
        with socket.socket(socket.AF_UNIX) as opened:
            here = os.getcwd()
            os.chdir(path.parent)  # a socket's name has at most 107 characters
            opened.bind(path.name)
            os.chdir(here)


Case = Callable[[Place], Callable[[], object]]


class Cases(dict[str, tuple[Case, tuple[str, ...]]]):
    """The cases of one file by their names."""

    def add(self, name: str, *said: str) -> Callable[[Case], Case]:
        """A case: given a place, it gives what is to be called; `said` stands in its line."""

        def add(make: Case) -> Case:
            assert name not in self
            self[name] = make, said
            return make

        return add

    def end_in_one_line(
        self, name: str, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Assert it of the case of this name."""
        make, said = self[name]
        place = Place(tmp_path)
        call = make(place)
        monkeypatch.chdir(place.data)
        OPENED.clear()
        descriptors = really_opened(place, monkeypatch)
        with at_most(SECONDS), pytest.raises(SystemExit) as end:
            run_script(call)
        printed = capsys.readouterr().err
        *before, line, end_of_text = printed.split("\n")
        assert (
            end.value.code == 2 and not end_of_text and all(each.startswith("warning: ") for each in before)
        ), printed
        assert (
            line.startswith("error: ")
            and printed.replace("\n", "").isprintable()
            and len(line) <= MOST_CHARACTERS
        ), line
        assert all(each in line for each in said), line
        outside = os.path.realpath(place.outside)
        assert (
            not [path for path in (*OPENED, *descriptors) if path.startswith((outside, "/etc/hostname"))]
            and SECRET not in line
        )


def config_file(path: Path) -> Callable[[], object]:
    return lambda: parse_arguments(Options, ["--config", str(path)])


def first_row(text: str) -> Callable[[], object]:
    return lambda: open_conversations(text)[0]


def of_dataset(text: str) -> Callable[[], object]:
    return lambda: open_source(text)


OPENED: list[str] = []


def note_opened(event: str, arguments: tuple) -> None:
    is_path = event == "open" and isinstance(arguments[0], str) and arguments[0].startswith("/")
    if is_path and "\0" not in arguments[0]:  # what is opened below a descriptor is noted by `really_opened`
        with suppress(OSError):  # a test may be swapping the folders of the path just now
            OPENED.append(os.path.realpath(arguments[0]))


sys.addaudithook(note_opened)


@contextmanager
def at_most(seconds: int) -> Iterator[None]:
    """Ends a hang by an error that nobody catches, and asserts that the time was kept."""

    def stop(signum: int, frame: object) -> None:
        raise KeyboardInterrupt(f"still there after {seconds} s")

    before, began = signal.signal(signal.SIGALRM, stop), time.monotonic()
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    assert time.monotonic() - began < seconds


def really_opened(place: Place, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Where the files lie that are opened from now on, by their descriptors, which no link can
    hide."""
    found: list[str] = []
    real_open = os.open

    def noting(*arguments, **options) -> int:
        descriptor = real_open(*arguments, **options)
        found.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        return descriptor

    monkeypatch.setattr(os, "open", noting)
    return found
