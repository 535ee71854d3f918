"""The folder of a program that saves no checkpoints: an evaluation, a fusion, a conversion. It is unfinished or whole, never in between.

    output_dir/   config.yaml  .lock  partial/  unfinished.json -> finished.json    and what the program makes

What the program makes is written aside and moved to its place when all of it is there and on the disk; then one rename makes `finished.json` of
`unfinished.json`. A loader that meets `unfinished.json` says so (`folder_kinds.py`). In `partial/` a program keeps what a later start of the same
command need not do again; a program without it begins anew. `--resume_from_checkpoint auto` starts, goes on, or says that all is done.
Imports nothing heavy.
"""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from vision_core.arguments import arguments_to_yaml, option
from vision_core.checkpoints import CheckpointNotWritten, is_write_error, make_readable, reason_of, sync, write_text_atomically
from vision_core.errors import AllDone, UserError
from vision_core.folder_checks import AUTO, FINISHED, RESUME_KEY, changed_keys, check_folder, holds_nothing, read_config
from vision_core.launchers import is_first_launched
from vision_core.run_folder import RunFolder
from vision_core.text_files import parse_json, read_text

UNFINISHED = "unfinished.json"
PARTIAL = "partial"
ASIDE = ".tmp-work"  # `RunFolder.begin` removes what has such a name
LAST = ("config.json", "encoder.json", "results.json")  # by these a folder is known: they come when all else is there
MOST_NAMED = 3  # options in a message
MOST_LETTERS = 40  # of an option's value in a message


def resume_option(group: str = "run") -> Any:
    """The option of every such program, as a field of its dataclass."""
    return option(None, "auto: start, go on with what an earlier start left in --output_dir, or say that all is done", group)


def config_of(args: Any) -> str:
    """What config.yaml says of the options, a dataclass. How the program was started is no part of it."""
    return arguments_to_yaml(replace(args, resume_from_checkpoint=None))


def check_work(output_dir: str | None, name: str, config_yaml: str, resume: str | None, program: str) -> None:
    """Refuse, before anything is loaded, a folder that the program could not use. Looks at names and small files, and changes nothing.

    name: of the default folder, `outputs/<name>-<n>`. config_yaml: `config_of` the options. resume: as it was given. program: as config.yaml names it.
    Raises UserError, and AllDone where nothing is left to do.
    """
    is_auto = _is_auto(resume, program)
    if is_auto:
        check_folder(output_dir, name, AUTO, program, can_resume=False)
        _compare(Path(output_dir or ""), config_yaml)
    elif is_first_launched():  # the others may look when it is in its folder already
        check_folder(output_dir, name, can_resume=False)


class WorkFolder:
    """A folder held by the main process. Make one with `WorkFolder.open`.

    path: the folder. is_old: whether an earlier start of the same command was in it. partial: the folder for what is kept; `publish` removes it.
    """

    def __init__(self, run: RunFolder, program: str) -> None:
        self.path, self.is_old, self.partial = run.path, run.is_old, run.path / PARTIAL
        self._run, self._program = run, program

    @classmethod
    def open(cls, output_dir: str | None, name: str, config_yaml: str, resume: str | None, program: str) -> "WorkFolder":
        """Start the work in a new folder, or go on with what is there; the arguments are those of `check_work`.

        Raises UserError, and AllDone where another start has just finished.
        """
        is_auto = _is_auto(resume, program)
        run = RunFolder.open(output_dir, name, config_yaml, AUTO if is_auto else None, program=program, can_resume=False)
        try:
            if run.is_old:
                _compare(run.path, config_yaml)
            work = cls(run, program)
            run.begin()
            work._mark()
        except BaseException:
            run.close()
            raise
        return work

    def publish(self, write: Callable[[Path], None], status: int = 0) -> None:
        """Let `write(folder)` fill a folder, move its files into `path`, and mark the work as finished. The last call.

        status: with which the program ends, and a later start of the same command too. Raises UserError where the disk is full or cannot be
        written; the work is then unfinished.
        """
        aside = self.path / ASIDE
        try:
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir()
            write(aside)
            names = _moved(aside, self.path)
            self._mark({"status": status, "files": names})
            os.rename(self.path / UNFINISHED, self.path / FINISHED)
            sync(self.path)
        except Exception as error:
            if not (isinstance(error, CheckpointNotWritten) or is_write_error(error)):
                raise
            reason = reason_of(error.__cause__ if isinstance(error, CheckpointNotWritten) and error.__cause__ else error)
            free = shutil.disk_usage(self.path).free
            raise UserError(
                f"{self.path} was not written: {reason}; {free / 1e6:.1f} MB are free; make room, then the same command with "
                f"--output_dir {self.path} --{RESUME_KEY} {AUTO} finishes it"
            ) from error
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        shutil.rmtree(self.partial, ignore_errors=True)
        self._run.close()

    def close(self) -> None:
        """Give the folder free, unfinished. `publish` does so itself; the end of the process too."""
        self._run.close()

    def _mark(self, more: dict[str, Any] | None = None) -> None:
        write_text_atomically(self.path / UNFINISHED, json.dumps({"program": self._program} | (more or {})) + "\n")


def _is_auto(resume: str | None, program: str) -> bool:
    """Raises UserError for what only a program with checkpoints takes."""
    word = str(resume).lower()
    if word in ("none", "false"):
        return False
    if word == AUTO:
        return True
    raise UserError(
        f"--{RESUME_KEY} {resume} names a checkpoint, and {program} saves none; --{RESUME_KEY} {AUTO} goes on with what is in --output_dir"
    )


def _compare(path: Path, config_yaml: str) -> None:
    """Raise AllDone where the folder holds the finished work of these options, UserError where it holds that of others."""
    if not path.is_dir() or holds_nothing(path):
        return
    changes = changed_keys(read_config(path), config_yaml)
    if changes:
        raise UserError(
            f"{path} has other options than this command: {_in_words(changes)}; give those of {path / 'config.yaml'}, or another --output_dir"
        )
    finished = _read_finished(path)
    if finished is not None and all((path / name).exists() for name in finished.get("files", ())):
        done = f"all is done: {path} holds the finished work of this command; another --output_dir starts anew"
        raise AllDone(done, finished.get("status", 0))


def _in_words(changes: dict[str, tuple[Any, Any]]) -> str:
    """The first differing options with the folder's value and that of the command, and how many more there are."""
    named = [f"{name} {_short(old)} there and {_short(new)} here" for name, (old, new) in list(changes.items())[:MOST_NAMED]]
    more = f" and {len(changes) - MOST_NAMED} more" if len(changes) > MOST_NAMED else ""
    return ", ".join(named) + more


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= MOST_LETTERS else f"{text[: MOST_LETTERS - 1]}…"


def _read_finished(path: Path) -> dict[str, Any] | None:
    try:
        read = parse_json(read_text(path / FINISHED, FINISHED, "remove it"), FINISHED, "remove it")
    except UserError:
        return None
    return read if isinstance(read, dict) else None


def _moved(aside: Path, path: Path) -> list[str]:
    """Bring all files of `aside` to the disk, then into `path`, those by which a folder is known last. Their names."""
    make_readable(aside)
    files = sorted((each for each in aside.rglob("*") if not each.is_dir()), key=lambda each: (each.name in LAST, each))
    for file in files:
        sync(file)
    names = [file.relative_to(aside).as_posix() for file in files]
    folders = {path}
    for name in names:
        target = path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(aside / name, target)
        folders |= {target.parent, target.parent.parent}
    for folder in folders:
        sync(folder)
    return names
