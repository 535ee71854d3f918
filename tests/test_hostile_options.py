"""Config files, command lines and names of data that somebody made to hurt: each ends in one line,
soon."""

import os
from collections.abc import Callable

import pytest

from tests.hostile import ESCAPE, LONG, Cases, Options, Place, config_file, first_row, of_dataset
from vision_core.arguments import parse_arguments

CASES = Cases()


def yaml_case(name: str, content: str | bytes, *said: str) -> None:
    @CASES.add(f"yaml: {name}", "run.yaml", *said)
    def _(place: Place) -> Callable[[], object]:
        return config_file(place.write("run.yaml", content))


LAUGHS = "a: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"b{number}: &a{number} [{', '.join([f'*a{number - 1}'] * 10)}]\n" for number in range(1, 5)
)
yaml_case("nested 5,000 deep", "widths: " + "[" * 5000 + "]" * 5000, "nested too deeply")
yaml_case("nested 5,000 deep, never closed", "widths: " + "[" * 5000, "nested too deeply")
yaml_case("blocks nested 5,000 deep", "widths:\n  " + "- " * 5000 + "1\n", "nested too deeply")
yaml_case("mappings nested 5,000 deep", "widths: " + "{a: " * 5000 + "1" + "}" * 5000, "nested too deeply")
yaml_case("a value of 1 MB", f"dataset: {'x' * 2**20}\n", "bytes")
yaml_case(
    "a value of 200 kB where a number is expected", f"learning_rate: {'x' * 200_000}\n", "line 1", "a number"
)
yaml_case("aliases that multiply", LAUGHS, "aliases")
yaml_case("a key of 100 kB", f"{'k' * 100_000}: 1\n")
yaml_case("a key with escape codes", '"\\e[31mred\\a": 1\n', r"\x1b[31mred")
yaml_case("a NUL in a value", 'dataset: "folder:a\\0b"\n', "dataset", r"\x00")
yaml_case("a NUL", b"dataset: a\0b\n", "not valid YAML")
yaml_case("bytes that are no text", b"dataset: \xff\xfe\n", "UTF-8")
yaml_case("a list of 20,000 numbers", f"widths: [{', '.join(['1'] * 20_000)}]", "values")
yaml_case("a list of escape codes", "learning_rate: [" + '"\\e[31m", ' * 2000 + "1]", r"\x1b")
yaml_case("not a number", "learning_rate: .nan\n", "a number")
yaml_case("a number of 5,000 digits", f"widths: [{'9' * 5000}]\n", "widths")
yaml_case("an alias of itself", "dataset: &a [*a]\n", "dataset")


def words_case(name: str, words: list[str], *said: str) -> None:
    @CASES.add(f"command line: {name}", *said)
    def _(place: Place) -> Callable[[], object]:
        return lambda: parse_arguments(Options, words)


words_case("a NUL", ["--dataset", "folder:a\0b"], "--dataset", r"a\x00b")
words_case("an unknown option of 5,000 characters", ["--" + LONG, "1"], "unknown option")
words_case("escape codes in an option", [f"--{ESCAPE}", "1"], r"\x1b[31mred")
words_case("escape codes in front", [ESCAPE], r"\x1b[31mred")
words_case("a number of 5,000 letters", ["--learning_rate", LONG], "--learning_rate", "a number")
words_case("a number of 5,000 digits", ["--widths", "9" * 5000], "--widths")
words_case("two files of long names", [f"{LONG}.yaml", "--config", f"{LONG}.yaml"], "give one")


def source_case(name: str, text: str, *said: str) -> None:
    @CASES.add(f"dataset: {name}", *said)
    def _(place: Place) -> Callable[[], object]:
        (place.data / "circle").symlink_to(place.data / "circle")
        return of_dataset(text.format(data=place.data))


source_case("a folder whose name is too long", f"folder:{LONG}", "nnn", "; ")
source_case("a folder that is a file", "folder:{data}/good.png", "good.png")
source_case("a folder that is a circle of links", "folder:{data}/circle", "circle")
source_case("a name with escape codes", f"folder:{{data}}/{ESCAPE}", r"\x1b[31mred")
source_case("a kind with escape codes", f"{ESCAPE}:x", "unknown kind")
source_case("a kind of 5,000 characters", f"{LONG}:x", "unknown kind")
source_case("an option of 5,000 characters", f"folder:{{data}}?{LONG}=1", "unknown option")
source_case("parquet whose name is too long", f"parquet:{LONG}.parquet", "; ")
source_case("shards whose name is too long", f"wds:{LONG}.tar")


@CASES.add("dataset: a linked folder of escape codes", "is not followed", r"\x1b", "; ")
def _(place: Place) -> Callable[[], object]:
    (place.data / ESCAPE).symlink_to(place.outside)
    return of_dataset(f"folder:{place.data}")


@CASES.add("parquet: a pipe among the files", "pipe.parquet", "; ")
def _(place: Place) -> Callable[[], object]:
    place.of_kind("pipe", ".parquet")
    return of_dataset(f"parquet:{place.data}/*.parquet")


@CASES.add("conversations in parquet: a pipe", "pipe.parquet", "; ")
def _(place: Place) -> Callable[[], object]:
    return first_row(f"parquet:{place.of_kind('pipe', '.parquet')}")


@CASES.add("hf: a pipe in a folder", "pipe.csv", "; ")
def _(place: Place) -> Callable[[], object]:
    place.write("in/train.csv", "a,b\n1,2\n")
    os.mkfifo(place.data / "in" / "pipe.csv")
    return of_dataset(f"hf:{place.data}/in")


@pytest.mark.parametrize("name", CASES)
def test_one_line(name, tmp_path, capsys, monkeypatch):
    CASES.end_in_one_line(name, tmp_path, capsys, monkeypatch)


def test_there_are_enough():
    assert len(CASES) >= 30, len(CASES)
