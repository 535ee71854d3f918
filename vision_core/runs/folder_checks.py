"""Look at the folder of a run: whether a run may start in it, which checkpoint it goes on from,
what its config says.

Nothing in this file makes or changes anything or holds a lock, so a program looks before minutes
are spent. `run_folder.py` holds the folder and writes.
"""

import os
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from vision_core.errors import AllDone, UserError
from vision_core.files.text_files import MAX_YAML_BYTES, read_bytes, yaml_value
from vision_core.printable import say
from vision_core.processes.launchers import is_first_launched
from vision_core.renamed_options import PROGRAM_LINE, by_present_names
from vision_core.runs import checkpoints
from vision_core.runs.folder_kinds import UNFINISHED_WORK, folder_kind
from vision_core.runs.folder_lock import refuse_in_use

RESUME_KEY = "resume_from_checkpoint"
# These say where a run is and how it starts and stops, not what it is. The folder may be named by
# another path.
HOW_IT_IS_RUN = (RESUME_KEY, "output_dir", "changed_data", "grace_seconds", "dry_run")
# a new run, the run that is there, or nothing more to do: one command for a job that is requeued
AUTO = "auto"
FINISHED = "finished.json"  # written last, once everything of the run stands in its folder
ABSENT = "(absent)"
# What a start leaves that did nothing else: it stands in nobody's way.
LITTER = (".lock", "config.yaml", "unfinished.json", "bad_samples.jsonl")


def check_folder(
    output_dir: str | None,
    name: str,
    resume: bool | str | None = None,
    program: str = "",
    can_resume: bool = True,
) -> Path | None:
    """Find the checkpoint that `RunFolder.open` would resume, None for a new run, and raise
    UserError where `open` would. Changes nothing and asks for no lock.
    """
    resume = resume_word(resume)
    if resume == AUTO:
        resume = resolve_auto(output_dir, name, can_resume)
    if resume is not None:
        path = folder_to_resume(output_dir, name, resume)
        refuse_other_program(path, program)
        checkpoint = checkpoint_to_resume(path, resume, warn_on_stderr)
        config_in(path)
        return checkpoint
    if output_dir is not None:
        refuse_used(Path(output_dir), name, can_resume)
    refuse_unwritable(Path("outputs" if output_dir is None else output_dir))
    return None


def refuse_unwritable(path: Path) -> None:
    """Raise UserError where a new folder of this path could not be made or written."""
    existing = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        problem = "cannot be written to" if existing.is_dir() else "is a file"
        raise UserError(
            f"output folder {path} cannot be used: {existing} {problem}; give another --output_dir"
        )


class FolderAhead(NamedTuple):
    """What a dry run knows of the folder in which its run would go on, in place of a `RunFolder`.

    checkpoint: where it would resume from, None for a new run. changes: the options that it would
    change, name -> (old, new).
    """

    checkpoint: Path | None
    changes: Mapping[str, tuple[Any, Any]]


def look_ahead(
    output_dir: str | None, name: str, config_yaml: str, resume: bool | str | None, program: str
) -> FolderAhead:
    """Find, for a dry run, the checkpoint that its run would resume and the options that it would
    change. Makes and changes nothing. Raises UserError."""
    checkpoint = check_folder(output_dir, name, resume, program)
    changes = changed_keys(read_config(checkpoint.parent), config_yaml) if checkpoint else {}
    return FolderAhead(checkpoint, changes)


def check_program(output_dir: str | None, name: str, resume: bool | str | None, program: str) -> None:
    """Raise UserError where a run is to be resumed that is not there, in use, of another program,
    or in a folder that cannot be written.

    Looks at names, rights, the lock and config.yaml, and changes nothing: for before minutes are
    spent.
    """
    wanted = resume_word(resume)
    if wanted == AUTO:
        wanted = resolve_auto(output_dir, name)
    if wanted is None:
        return
    path = folder_to_resume(output_dir, name, wanted)
    refuse_other_program(path, program)
    config_in(path)
    if not os.access(path, os.W_OK | os.X_OK):
        raise UserError(f"{path} cannot be written to; give yourself access to it")
    if is_first_launched():  # the others may look once the first of them has its folder
        refuse_in_use(path)
    if wanted == "true" and not checkpoints.list_checkpoints(path):
        checkpoint_to_resume(path, wanted, warn_on_stderr)


def end_if_all_is_done(
    output_dir: str | None, config_yaml: str, resume: bool | str | None, program: str
) -> None:
    """Raise AllDone where `--resume_from_checkpoint auto` finds the finished run of the same
    program and options. Looks at two small files."""
    path = Path(output_dir or "")
    if resume_word(resume) != AUTO or output_dir is None or not (path / FINISHED).is_file():
        return
    refuse_other_program(path, program)
    if not changed_keys(read_config(path), config_yaml):
        raise AllDone(
            f"all is done: {path} holds the finished run of this command; another --output_dir starts a new one"
        )


def checkpoint_ahead(output_dir: str | None, resume: bool | str | None) -> Path | None:
    """The checkpoint from which a run will go on, for what is to be read from it before the folder
    is opened; None for a start.

    Raises UserError for one that is asked for by its name and is not whole, as `RunFolder.open`
    does, and refuses nothing else.
    """
    wanted = resume_word(resume)
    if wanted in (None, "true", AUTO):
        root = Path(output_dir or "")
        return (
            checkpoints.newest_checkpoint(root, lambda _: None)
            if wanted and output_dir and root.is_dir()
            else None
        )
    return (
        checkpoint_to_resume(Path(wanted).parent, wanted, warn_on_stderr) if Path(wanted).is_dir() else None
    )


def refuse_used(path: Path, name: str, can_resume: bool = True) -> None:
    """Raise UserError for a folder, if it is there, with anything in it but a lock. The advice is
    what the program takes.

    name: of the program's default folder, "" where it has none.
    """
    if not path.is_dir() or holds_nothing(path):
        return
    kind = folder_kind(path)
    holds = "" if kind.name == "unknown" else f", it is {kind.is_a}"
    if kind.name == UNFINISHED_WORK:
        cure = (
            f"`--output_dir {path} --{RESUME_KEY} {AUTO}`, given to that program, goes on with it, "
            "`--output_dir OTHER` starts elsewhere"
        )
    elif can_resume and checkpoints.list_checkpoints(path):
        cure = (
            f"`--output_dir {path} --{RESUME_KEY} true` continues the run in it, `--output_dir OTHER` "
            "starts a new one elsewhere"
        )
    else:
        cure = "`--output_dir OTHER` names another folder"
        cure += f"; without --output_dir it is the next free outputs/{name}-<n>" if name else ""
    raise UserError(f"output folder {path} is not empty{holds}: {cure}")


def holds_nothing(path: Path) -> bool:
    """Whether a folder is empty, or holds nothing but what a start of one of these programs left
    that had done nothing yet."""
    names = {entry.name for entry in path.iterdir() if not entry.name.startswith(".tmp-")} - {".lock"}
    return not names or (names <= set(LITTER) and read_config(path).startswith(PROGRAM_LINE))


def refuse_other_program(path: Path, program: str) -> None:
    """Raise UserError where config.yaml says that another program made the run in `path`. Older
    runs do not say it."""
    first = read_config(path).partition("\n")[0]
    theirs = first.removeprefix(PROGRAM_LINE) if first.startswith(PROGRAM_LINE) else program
    if program and theirs != program:
        raise UserError(
            f"{path} is a run of {theirs}, not of {program}: continue it by its own program, or start a "
            "new run with another --output_dir"
        )


def resume_word(resume: bool | str | None) -> str | None:
    """None for a new run, "true" for the newest checkpoint, "auto" for whatever there is to do,
    otherwise a path."""
    word = str(resume).lower()
    if word in ("none", "false"):
        return None
    return word if word in ("true", AUTO) else str(resume)


def resolve_auto(output_dir: str | None, name: str, can_resume: bool = True) -> str | None:
    """None where `auto` means a new run, "auto" where a run is there. Raises UserError where the
    folder has no name, or is no run's."""
    if output_dir is None:
        raise UserError(
            f"--{RESUME_KEY} {AUTO} needs a folder with a name, by which the next start finds it: add "
            f"--output_dir outputs/{name}-1"
        )
    path = Path(output_dir)
    if not path.is_dir() or all(entry.name == ".lock" for entry in path.iterdir()):
        return None
    if not read_config(path).startswith(PROGRAM_LINE):
        refuse_used(path, name, can_resume)
    return AUTO


def folder_to_resume(output_dir: str | None, name: str, resume: str) -> Path:
    """The folder of the run that `resume_word` names. Raises UserError where there is none, or it
    is another than `output_dir`."""
    if resume not in ("true", AUTO):
        parent = Path(resume).resolve().parent
        if output_dir is not None and Path(output_dir).resolve() != parent:
            raise UserError(
                f"--{RESUME_KEY} {resume} is not in --output_dir {output_dir}: leave out --output_dir to continue "
                f"that run, or start a new one from its weights with --init_from"
            )
        if not os.path.isdir(resume):
            raise UserError(
                f"--{RESUME_KEY} {resume}: no such folder; give a checkpoint-<step> folder, or true for the newest"
            )
        return Path(resume).parent if output_dir is None else Path(output_dir)
    if output_dir is None:
        numbers = run_numbers(Path("outputs"), name)
        example = f"outputs/{name}-{max(numbers)}" if numbers else "FOLDER"
        raise UserError(f"--{RESUME_KEY} true needs to know the run: add --output_dir {example}")
    if not os.path.isdir(output_dir):
        raise UserError(
            f"--{RESUME_KEY} true: there is no folder {output_dir}; leave the option out to start a new run there"
        )
    return Path(output_dir)


def checkpoint_to_resume(path: Path, resume: str, warn: Callable[[str], None]) -> Path | None:
    """None where `auto` takes up a run that has no whole checkpoint, from its start. Raises
    UserError where there is nothing whole to take up."""
    if resume in ("true", AUTO):
        newest = checkpoints.newest_checkpoint(path, warn)
        if newest is None and resume == "true":
            raise UserError(
                f"no whole checkpoint-<step> in {path}: --{RESUME_KEY} {AUTO} starts this run again from "
                "its first step"
            )
        return newest
    reason = checkpoints.verify_checkpoint(Path(resume))
    if reason is not None:
        raise UserError(
            f"--{RESUME_KEY} {resume} is no whole checkpoint: {reason}; `true` takes the newest whole one of its run"
        )
    return Path(resume)


def changed_keys(old_yaml: str, new_yaml: str) -> dict[str, tuple[Any, Any]]:
    """The options that differ between two configs, name -> (old, new), with "(absent)" for a side
    that lacks it.

    How a run was started and how long it may take to end (`HOW_IT_IS_RUN`) does not count. Raises
    UserError if a text is no YAML mapping.
    """
    old = _read_mapping(old_yaml)
    new = _read_mapping(new_yaml)
    changes = {}
    for name in old | new:
        before = old.get(name, ABSENT)
        now = new.get(name, ABSENT)
        if before != now and name not in HOW_IT_IS_RUN:
            changes[name] = (before, now)
    return changes


def config_in(path: Path) -> dict[str, Any]:
    """The options in config.yaml of a run's folder, {} where there is none. Raises UserError for a
    file that holds no options."""
    return _read_mapping(read_config(path))


def read_config(path: Path) -> str:
    """The text of config.yaml in a run's folder, "" where there is none. Raises UserError for a
    file that is no plain small one."""
    config = path / "config.yaml"
    if not config.exists():
        return ""
    data = read_bytes(config, str(config), "mend it or move it away", most_bytes=MAX_YAML_BYTES)
    return data.decode("utf-8", errors="replace")


def _read_mapping(text: str) -> dict[str, Any]:
    mapping = yaml_value(text, "config.yaml of the run", "mend it or move it away")
    if mapping is not None and not isinstance(mapping, dict):
        raise UserError("config.yaml of the run must hold lines `key: value`: mend it or move it away")
    return by_present_names(mapping or {})


def run_numbers(root: Path, name: str) -> list[int]:
    """Of the default folders, `root/<name>-<n>`."""
    return numbers_in(root, rf"{re.escape(name)}-(\d+)")


def numbers_in(root: Path, pattern: str) -> list[int]:
    """The numbers in the names of `root` that match the whole pattern."""
    numbers = []
    for entry in root.iterdir() if root.is_dir() else ():
        match = re.fullmatch(pattern, entry.name)
        if match:
            numbers.append(int(match.group(1)))
    return numbers


def warn_on_stderr(text: str) -> None:
    """Where nobody else hears of damaged checkpoints and of changes."""
    say(f"warning: {text}", file=sys.stderr)
