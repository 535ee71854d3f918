"""The folder of a program that saves no checkpoints, killed at every rename of its last moments."""

import json
import os
import signal
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import pytest

from vision_core.arguments import option
from vision_core.errors import AllDone, UserError
from vision_core.folder_kinds import folder_kind, refuse_folder
from vision_core.publishing import published
from vision_core.work_folder import WorkFolder, check_work, config_of, resume_option

PROGRAM = "recipes/some.py"
FILES = {"config.json": '{"model_type": "x", "vocab_size": 3}', "model.safetensors": "w" * 5000, "figures/a.png": "p", "README.md": "# x"}


@dataclass
class Options:
    size: int = option(3, "a number")
    text: str = option("x", "a text")
    output_dir: str | None = option(None, "a folder")
    resume_from_checkpoint: str | None = resume_option()


@pytest.fixture(autouse=True)
def in_tmp_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def opened(resume="auto", program=PROGRAM, output_dir="out", **options) -> WorkFolder:
    return WorkFolder.open(output_dir, "some", config_of(Options(output_dir=output_dir, **options)), resume, program)


def check(resume="auto", program=PROGRAM, output_dir="out", **options) -> None:
    check_work(output_dir, "some", config_of(Options(output_dir=output_dir, **options)), resume, program)


def write(folder: Path) -> None:
    for name, text in FILES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)


def is_whole(folder: Path) -> bool:
    return all((folder / name).is_file() and (folder / name).read_text() == text for name, text in FILES.items())


def killed(work_at: int) -> bool:
    """Do the work in a process of its own, which ends by SIGKILL in front of its `work_at`-th rename; whether it did."""
    process = os.fork()
    if process == 0:
        done = 0

        def dying(original):
            def rename(*arguments):
                nonlocal done
                done += 1
                if done == work_at:
                    os.kill(os.getpid(), signal.SIGKILL)
                return original(*arguments)

            return rename

        os.rename, os.replace = dying(os.rename), dying(os.replace)
        opened().publish(write)
        os._exit(0)
    return os.WIFSIGNALED(os.waitpid(process, 0)[1])


def test_the_same_command_starts_goes_on_and_says_that_all_is_done(tmp_path):
    check()
    opened().publish(write)
    assert is_whole(Path("out")) and not list(Path("out").glob(".tmp-*")) and not Path("out/unfinished.json").exists()
    before = {path: path.stat().st_mtime_ns for path in Path("out").rglob("*")}
    for call in (check, opened):
        with pytest.raises(AllDone) as done:
            call()
        assert done.value.code == 0 and "all is done: out holds" in done.value.line
    assert {path: path.stat().st_mtime_ns for path in Path("out").rglob("*") if path.name != ".lock"}.items() <= before.items()
    with pytest.raises(AllDone):
        check(output_dir=str(tmp_path / "out"))  # the same folder by another path


def test_killed_in_front_of_every_rename_it_is_unfinished_and_the_same_command_finishes_it():
    """What was killed is never taken for whole, by whichever loader; the next start makes it whole."""
    kills = 0
    while killed(kills + 1):
        kills += 1
        folder = Path("out")
        assert not (folder / "finished.json").exists()
        if (folder / "unfinished.json").exists():
            assert folder_kind(folder).name == "unfinished_work"
            with pytest.raises(UserError, match="unfinished work of recipes/some.py; the same command with --output_dir out"):
                refuse_folder(folder, "an encoder", ("encoder", "model"))
        if any((folder / name).exists() for name in FILES):
            with pytest.raises(UserError, match="--resume_from_checkpoint auto"):
                check(resume=None)
        else:
            check(resume=None)  # what did nothing yet stands in nobody's way
        opened().publish(write)
        assert is_whole(folder) and folder_kind(folder).name == "language_model" and not list(folder.glob(".tmp-*"))
        os.system("rm -r out")
    assert kills >= 4 + len(FILES)
    assert is_whole(Path("out"))


def test_other_options_are_refused_and_named_and_nothing_changes():
    opened(text="y" * 200).publish(write)
    before = {path: path.read_bytes() for path in Path("out").rglob("*") if path.is_file()}
    for call in (check, opened):
        with pytest.raises(UserError) as refused:
            call(size=4, text="z")
        said = str(refused.value)
        assert "size 3 there and 4 here" in said and "text yyy" in said and "another --output_dir" in said and len(said) <= 300
    assert {path: path.read_bytes() for path in Path("out").rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("resume", ["true", "out/checkpoint-3"])
def test_only_auto_has_a_meaning_where_no_checkpoint_is_saved(resume):
    for call in (check, opened):
        with pytest.raises(UserError, match=f"resume_from_checkpoint {resume} names a checkpoint, and {PROGRAM} saves none; .* auto"):
            call(resume=resume)
    assert not Path("out").exists()


def test_folders_of_others_are_refused():
    opened(program="recipes/other.py").publish(write)
    with pytest.raises(UserError, match="is a run of recipes/other.py, not of recipes/some.py"):
        check()
    Path("mine").mkdir()
    Path("mine/letter.txt").write_text("dear")
    with pytest.raises(UserError, match="mine is not empty"):
        check(output_dir="mine")
    with pytest.raises(UserError, match="needs a folder with a name"):
        check(output_dir=None)


def test_two_at_a_time_are_refused():
    work = opened()
    with pytest.raises(UserError, match="in use by another run"):
        opened()
    work.publish(write)


def test_a_file_that_was_lost_later_is_made_again():
    opened().publish(write)
    Path("out/model.safetensors").unlink()
    opened().publish(write)
    assert is_whole(Path("out"))


def test_the_status_of_finished_work_is_said_again():
    opened().publish(write, status=1)
    with pytest.raises(AllDone) as done:
        check()
    assert done.value.code == 1


@pytest.mark.parametrize("kind", ["python", "tokenizers", "a whole folder"])
def test_what_cannot_be_written_is_one_line_and_leaves_unfinished_work(kind):
    """A full disk is an OSError, in tokenizers an Exception of no kind, and behind `published` this project's own error of an inner folder."""

    def full(folder: Path) -> None:
        (folder / "model.safetensors").write_text("half")
        if kind == "tokenizers":
            raise Exception("No space left on device (os error 28)")
        with published(folder) if kind == "a whole folder" else nullcontext():
            raise OSError(28, "No space left on device")

    work = opened()
    line = "out was not written: No space left on device.*; .* MB are free; make room, .* --output_dir out --resume_from_checkpoint auto"
    with pytest.raises(UserError, match=line) as refused:
        work.publish(full)
    work.close()
    assert "\n" not in str(refused.value) and not list(Path("out").glob(".tmp-*"))
    opened().publish(write)
    assert is_whole(Path("out"))


def test_what_a_refused_start_leaves_stands_in_nobodys_way():
    """The names of unreadable images stay to be read; the same command, mended, starts."""
    work = opened(resume=None)
    (work.path / "bad_samples.jsonl").write_text(json.dumps({"id": "a", "reason": "corrupt"}) + "\n")
    work.close()
    check(resume=None, size=5)
    opened(resume=None, size=5).publish(write)
    assert is_whole(Path("out")) and not Path("out/bad_samples.jsonl").exists()
