"""Names of strangers in what people read."""

import io
import os
import unicodedata
from dataclasses import dataclass

import pytest

from vision_core.arguments import arguments_to_yaml, option, parse_arguments
from vision_core.errors import Stopped, UserError, first_line, run_script, say_last
from vision_core.images.open_source import open_source
from vision_core.model_card import write_model_card
from vision_core.printable import fitted, in_code, printable, say, shortened
from vision_core.runs.run_folder import RunFolder
from vision_core.unreadable import UnreadableImage

HOSTILE = "a\x1b[2J\x9b31m\r\nb\u2028c\u202egpj\u200b\udcff\x7f"


def test_no_character_that_is_not_shown_is_left():
    every = "".join(map(chr, range(0x110000)))
    left = printable(every)
    assert {unicodedata.category(character) for character in left} & {"Cc", "Cf", "Cs", "Zl", "Zp"} == set()
    assert printable("Zoë, 猫 and a 🐈.png") == "Zoë, 猫 and a 🐈.png"


def test_escapes_tell_which_character_it_was():
    assert printable(HOSTILE) == r"a\x1b[2J\x9b31m\r\nb\u2028c\u202egpj\u200b\xff\x7f"


def test_a_long_value_loses_its_middle():
    assert shortened("abcdefghij", 10) == "abcdefghij"
    assert shortened("abcdefghijk", 10) == "abcde…hijk"
    assert len(shortened("\x1b" * 100, 10)) == 10


def test_a_message_keeps_what_where_and_cure():
    """File, row and cure stay, however long the values between them are, with and without
    spaces."""
    for number in range(200):
        path, value, words = ("/data/" + "p" * (number * 40), "v" * (number * 30), "w " * (number * 7))
        line = fitted(
            f"error: {path}/rows.jsonl, line 17: the image '{words}{value}' leads out of {path}; give paths inside it"
        )
        assert len(line) <= 300
        assert (
            line.startswith("error: /data/")
            and "/rows.jsonl, line 17" in line
            and line.endswith("; give paths inside it")
        )


def test_a_message_that_is_short_stays_as_it_is():
    text = "x" * 290
    assert fitted(text) == text and fitted("a; b") == "a; b"


def test_a_message_of_nothing_but_words_is_cut_in_its_middle():
    line = fitted("no image " * 100 + "was found; give another folder")
    assert len(line) <= 300 and line.startswith("no image") and line.endswith("; give another folder")
    assert len(fitted("; " + "cure " * 1000)) <= 300


def test_every_error_is_printable_from_its_birth():
    assert str(UserError(HOSTILE)).isprintable()
    assert UnreadableImage(HOSTILE).reason.isprintable() and len(UnreadableImage("x" * 999).reason) <= 200
    assert Stopped(143, HOSTILE).line.isprintable()
    assert first_line(OSError("\x1b" * 1000 + "\n")).isprintable()


def test_a_name_cannot_write_a_line_of_its_own(capsys):
    def main():
        raise UserError("there is no x\nerror: all is well\x1b[0m")

    with pytest.raises(SystemExit):
        run_script(main)
    assert capsys.readouterr().err == "error: there is no x\\nerror: all is well\\x1b[0m\n"


def test_what_is_said_last_is_one_short_line(capsys):
    say_last("error: " + HOSTILE * 500)
    printed = capsys.readouterr().err
    assert printed.endswith("\n") and printed[:-1].isprintable() and len(printed) <= 301


def test_own_line_breaks_of_what_is_said_stay(capsys):
    say("a table\n\x1b[0m")
    assert capsys.readouterr().out == "a table\n\\x1b[0m\n"


def test_a_terminal_of_another_encoding(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    say("Zoë…", file=stream)
    assert stream.buffer.getvalue() == b"Zo\\xeb\\u2026\n"


def test_names_in_another_encoding_are_read_kept_and_shown(tmp_path):
    """Bytes of Latin 1 are a name of a file like any other, in a folder, a list and an option."""
    from PIL import Image

    folder = tmp_path / "data" / os.fsdecode(b"Zo\xeb")
    folder.mkdir(parents=True)
    Image.new("RGB", (16, 16)).save(folder / os.fsdecode(b"\xff.png"))
    (tmp_path / "data" / "list.txt").write_bytes(b"Zo\xeb/\xff.png\n")
    for source in (
        open_source(f"folder:{folder}"),
        open_source(f"list:{tmp_path}/data/list.txt"),
        open_source(f"{tmp_path}/data"),
    ):
        assert source[0].image.shape == (3, 16, 16) and source.description.isprintable()

    @dataclass
    class Options:
        dataset: str = option("", "data")

    args = Options(f"folder:{folder}")
    RunFolder.open(str(tmp_path / "run"), "run", arguments_to_yaml(args)).close()
    assert parse_arguments(Options, ["--config", str(tmp_path / "run" / "config.yaml")]) == args


def test_warnings_of_a_run_and_names_of_sources(tmp_path, capsys):
    from PIL import Image

    for name in ("\x1b[31mred", "gpj.\u202eexe"):
        (tmp_path / "data" / name).mkdir(parents=True)
        Image.new("RGB", (16, 16)).save(tmp_path / "data" / name / "0.png")
    source = open_source(f"folder:{tmp_path}/data")
    assert source.class_names == [r"\x1b[31mred", r"gpj.\u202eexe"] and source.description.isprintable()
    RunFolder.open(str(tmp_path / "run"), "run", "a: 1\n").close()
    (tmp_path / "run" / "checkpoint-1").mkdir()
    with pytest.raises(UserError):
        RunFolder.open(str(tmp_path / "run"), "run", 'a: "\\e[31m"\n', True)
    assert "\x1b" not in capsys.readouterr().err


def test_a_card_holds_no_control_characters_and_no_code_that_ends_early(tmp_path):
    code = in_code("folder:`a`\x1b\n")
    settings = {"dataset": HOSTILE, "a|b": "c\nd"}
    write_model_card(
        tmp_path / "README.md", title=HOSTILE, summary="s", training_command=f"run {HOSTILE} ```", data=f"from {code}",
        results=[{"task": HOSTILE, "value": 1.0}], settings=settings, note="n", pictures={HOSTILE: "a.png"},
    )  # fmt: skip
    text = (tmp_path / "README.md").read_text()
    assert text.replace("\n", "").isprintable() and text.count("```") == 4 and code == "`folder:'a'\\x1b\\n`"
