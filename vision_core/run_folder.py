"""The folder of one run: who may write in it, its config, its metrics, and the checkpoint from which it goes on.

    output_dir/   config.yaml  metrics.jsonl  bad_samples.jsonl  checkpoint-<step>/  finished.json  .lock    and the model's own files

Only the main process opens it; the others are told its path. Opening an old run looks and changes nothing; `begin`, which is called once
everything else has been checked, brings the folder back to its checkpoint; `finish` marks it as done. A new folder of a program that ends
by an error before anything but its config stands in it is taken away again, so that the command, mended, starts with the same --output_dir.
"""

import json
import os
import re
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from vision_core import checkpoints
from vision_core.errors import AllDone, UserError, undo_if_failed
from vision_core.folder_kinds import UNFINISHED_WORK, folder_kind
from vision_core.folder_lock import FolderLock, refuse_in_use
from vision_core.json_lines import JsonLines
from vision_core.launchers import is_first_launched
from vision_core.printable import say
from vision_core.text_files import MAX_YAML_BYTES, read_bytes, yaml_value

RESUME_KEY = "resume_from_checkpoint"
HOW_IT_IS_RUN = (RESUME_KEY, "changed_data", "grace_seconds")  # say how a run starts and stops, not what it is
AUTO = "auto"  # a new run, the run that is there, or nothing more to do: one command for a job that is requeued
FINISHED = "finished.json"  # written last, once everything of the run stands in its folder
PROGRAM_LINE = "# options of "  # begins the first line of a config.yaml, which names its program
ABSENT = "(absent)"
# What a start leaves that did nothing else: it stands in nobody's way.
LITTER = (".lock", "config.yaml", "unfinished.json", "bad_samples.jsonl")


class RunFolder:
    """An output folder held by this process. Make one with `RunFolder.open`.

    path: the folder. checkpoint: where to resume from, or None for a new run. step: the checkpoint's step, or 0.
    changes: the options that a resumed run changes, name -> (old, new). bad_sample_ids: the ids in bad_samples.jsonl.
    is_old: whether the run was there before, with a checkpoint or without.
    """

    def __init__(
        self, path: Path, lock: FolderLock, checkpoint: Path | None, warn: Callable[[str], None], config_yaml: str, is_old: bool
    ) -> None:
        self.path = path
        self.checkpoint = checkpoint
        self.step = checkpoints.checkpoint_step(checkpoint) if checkpoint else 0
        self.is_old = is_old
        self.changes = changed_keys(_read_config(path), config_yaml) if is_old else {}
        self._config_yaml = config_yaml
        self._has_begun = not is_old
        self._waiting: list[tuple[JsonLines, dict[str, Any]]] = []  # lines of an old run that has not begun
        self._lock = lock
        self._warn = warn
        self._metrics = JsonLines(path / "metrics.jsonl", warn)
        self._bad_samples = JsonLines(path / "bad_samples.jsonl", warn)
        self.bad_sample_ids = {record["id"] for record in self._bad_samples.read() if "id" in record}

    @classmethod
    def open(
        cls,
        output_dir: str | None,
        name: str,
        config_yaml: str,
        resume: bool | str | None = None,
        warn: Callable[[str], None] | None = None,
        program: str = "",
        can_resume: bool = True,
        check: Callable[[Path], None] | None = None,
    ) -> "RunFolder":
        """Start a new run's folder, or take up an old one.

        output_dir: None means `outputs/<name>-<n>` with the next free n.
        config_yaml: the resolved options, kept as config.yaml.
        resume: None or false starts a new run; true goes on from the newest whole checkpoint of `output_dir`; a path
        names one; auto goes on with the run that is in `output_dir`, from its start where it has no checkpoint, and
        starts one where there is none. An old run's folder stays as it is until `begin`.
        warn: hears of damaged checkpoints and of what `begin` changes (stderr by default).
        program: the script, `pretrain/mae.py`; config.yaml names it, and the run of another program is not resumed.
        can_resume: whether the program has --resume_from_checkpoint, so that a refusal may advise it.
        check: looks at the checkpoint before anything of the folder is changed; raises UserError where the run cannot
        go on from it.

        Raises UserError when the folder cannot be used, holds another run, is in use, or has nothing to resume from.
        """
        warn = warn or _warn_on_stderr
        config_yaml = f"{PROGRAM_LINE}{program}\n{config_yaml}" if program else config_yaml
        resume = _read_resume(resume)
        try:
            if resume == AUTO:
                resume = _resolve_auto(output_dir, name, can_resume)
            if resume is None:
                return cls._open_new(output_dir, name, config_yaml, warn, can_resume)
            return cls._open_old(output_dir, name, config_yaml, resume, warn, program, check)
        except OSError as error:
            path = error.filename or output_dir or "outputs"
            raise UserError(f"output folder {path} cannot be used: {error.strerror}; give another --output_dir") from None

    @classmethod
    def _open_new(cls, output_dir: str | None, name: str, config_yaml: str, warn: Callable[[str], None], can_resume: bool) -> "RunFolder":
        wanted = Path(output_dir) if output_dir is not None else Path("outputs", f"{name}-n")
        ours = [folder for folder in (wanted, *wanted.parents) if not folder.exists()]
        path = wanted if output_dir is not None else _next_free_folder(wanted.parent, name)
        ours = [path if folder == wanted else folder for folder in ours]
        path.mkdir(parents=True, exist_ok=True)
        for made in ours:
            checkpoints.sync(made.parent)  # what is written below a name that a power cut takes is lost
        refuse_used(path, name, can_resume)  # before the lock file, which would be litter in a folder of something else
        ours = [*(each for each in (path / "config.yaml", path / ".lock") if not each.exists()), *ours]
        lock = FolderLock(path, warn)
        try:
            refuse_used(path, name, can_resume)  # again, because another run may have come and gone
            _remove_litter(path)
            checkpoints.write_text_atomically(path / "config.yaml", config_yaml)
            undo_if_failed(partial(_take_away, path, ours, os.getpid()))
            return cls(path, lock, None, warn, config_yaml, is_old=False)
        except BaseException:
            lock.release()
            raise

    @classmethod
    def _open_old(
        cls,
        output_dir: str | None,
        name: str,
        config_yaml: str,
        resume: str,
        warn: Callable[[str], None],
        program: str,
        check: Callable[[Path], None] | None,
    ) -> "RunFolder":
        path = _folder_to_resume(output_dir, name, resume)
        _refuse_other_program(path, program)
        lock = FolderLock(path, warn)
        try:
            checkpoints.finish_saves(path)
            checkpoint = _checkpoint_to_resume(path, resume, warn)
            if check is not None and checkpoint is not None:
                check(checkpoint)
            run = cls(path, lock, checkpoint, warn, config_yaml, is_old=True)
        except BaseException:
            lock.put_back()
            raise
        undo_if_failed(partial(run._leave_as_found, os.getpid()))
        return run

    def begin(self) -> None:
        """Bring an old run's folder back to its step, and write what has waited for that. A new run's folder has begun.

        The call comes after everything that can still fail: model, data and options. Later checkpoints are set aside, later
        metrics go to metrics-set-aside.jsonl, a changed config is written and the old one kept as config-<k>.yaml. Raises
        UserError where the folder cannot be written.
        """
        if self._has_begun:
            return
        try:
            (self.path / FINISHED).unlink(missing_ok=True)
            checkpoints.clean_leftovers(self.path)
            self._keep_old_config(self._config_yaml)
            self._set_aside_later_checkpoints()
            self.truncate_metrics(self.step)
        except OSError as error:
            raise UserError(f"{self.path} cannot be written ({error.strerror}); make room or give yourself access to it") from None
        self._has_begun = True
        for lines, record in self._waiting:
            lines.append(record)
        self._waiting.clear()

    def finish(self) -> None:
        """Mark the run as done: everything that it was to leave stands in its folder. The last call before `close`. Raises CheckpointNotWritten."""
        with checkpoints.writing(self.path / FINISHED):
            self.sync_lines()
            checkpoints.write_text_atomically(self.path / FINISHED, json.dumps({"step": self.step}) + "\n")

    def sync_lines(self) -> None:
        """Bring metrics.jsonl and bad_samples.jsonl to the disk: what a checkpoint knows of must be there when it is. Raises OSError."""
        for lines in (self._metrics, self._bad_samples):
            lines.sync()

    def remove_damaged(self) -> None:
        """Remove the damaged checkpoints that were set aside, with a line for each. Call it when a newer whole one stands."""
        for name in checkpoints.remove_damaged(self.path):
            self._warn(f"{self.path / name} was damaged and is removed: a newer whole checkpoint stands")

    def append_metrics(self, metrics: dict[str, Any]) -> None:
        """Add one line to metrics.jsonl, safe from a kill at once. Non-finite numbers become "nan", "inf", "-inf"."""
        self._append(self._metrics, metrics)

    def append_bad_sample(self, sample_id: str, reason: str) -> bool:
        """Name an unreadable sample in bad_samples.jsonl, once per id, also across a resume. True if it is new."""
        if sample_id in self.bad_sample_ids:
            return False
        self.bad_sample_ids.add(sample_id)
        self._append(self._bad_samples, {"id": sample_id, "reason": reason})
        return True

    def truncate_metrics(self, after_step: int) -> None:
        """Move the lines of metrics.jsonl whose "step" is above `after_step` to metrics-set-aside.jsonl."""
        self._metrics.move_others(lambda record: record.get("step", 0) <= after_step, self.path / "metrics-set-aside.jsonl")

    def _append(self, lines: JsonLines, record: dict[str, Any]) -> None:
        if self._has_begun:
            lines.append(record)
        else:
            self._waiting.append((lines, record))

    def close(self) -> None:
        """Give the folder free for another run. The end of the process does the same, however it comes."""
        self._lock.release()

    def _leave_as_found(self, process: int) -> None:
        """Of an old run that was refused before `begin`, by `process`, not even the lock's file is another one."""
        if not self._has_begun and os.getpid() == process:
            self._lock.put_back()

    def _keep_old_config(self, config_yaml: str) -> None:
        config = self.path / "config.yaml"
        if not self.changes and config.exists():
            return
        if config.exists():
            number = 1 + max((int(k) for k in _numbers(self.path, r"config-(\d+)\.yaml")), default=0)
            checkpoints.write_text_atomically(self.path / f"config-{number}.yaml", _read_config(self.path))
            listed = ", ".join(f"{key} {old} -> {new}" for key, (old, new) in self.changes.items())
            self._warn(f"resuming with a changed config: {listed}; the old one is kept as config-{number}.yaml")
        checkpoints.write_text_atomically(config, config_yaml)

    def _set_aside_later_checkpoints(self) -> None:
        """Checkpoints after the resumed step are damaged or of a course that is left: never to be resumed. So are unfinished ones before it."""
        for path in checkpoints.list_checkpoints(self.path):
            is_later = int(path.name.removeprefix("checkpoint-")) > self.step
            if is_later or not (path / checkpoints.MANIFEST).exists():
                number = 1 + max((int(k) for k in _numbers(self.path, rf"set-aside-(\d+)-{path.name}")), default=0)
                name = f"set-aside-{number}-{path.name}"
                is_damaged = checkpoints.set_aside(path, name)
                what = "is damaged" if is_damaged else f"is whole and later than step {self.step}"
                end = "to be removed once a newer one stands" if is_damaged else "which stays until you remove it"
                self._warn(f"{path} {what}: now {name}, {end}")


def changed_keys(old_yaml: str, new_yaml: str) -> dict[str, tuple[Any, Any]]:
    """The options that differ between two configs, name -> (old, new), with "(absent)" for a side that lacks it.

    How a run was started and how long it may take to end (`HOW_IT_IS_RUN`) does not count. Raises UserError if a text is no YAML mapping.
    """
    old, new = _read_mapping(old_yaml), _read_mapping(new_yaml)
    names = [name for name in {**old, **new} if name not in HOW_IT_IS_RUN]
    pairs = {name: (old.get(name, ABSENT), new.get(name, ABSENT)) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _read_resume(resume: bool | str | None) -> str | None:
    """None for a new run, "true" for the newest checkpoint, "auto" for whatever there is to do, otherwise a path."""
    word = str(resume).lower()
    if word in ("none", "false"):
        return None
    return word if word in ("true", AUTO) else str(resume)


def _resolve_auto(output_dir: str | None, name: str, can_resume: bool = True) -> str | None:
    """None where `auto` means a new run, "auto" where a run is there. Raises UserError where the folder has no name, or is no run's."""
    if output_dir is None:
        raise UserError(
            f"--{RESUME_KEY} {AUTO} needs a folder with a name, by which the next start finds it: add --output_dir outputs/{name}-1"
        )
    path = Path(output_dir)
    if not path.is_dir() or all(entry.name == ".lock" for entry in path.iterdir()):
        return None
    if not _read_config(path).startswith(PROGRAM_LINE):
        refuse_used(path, name, can_resume)
    return AUTO


def end_if_all_is_done(output_dir: str | None, config_yaml: str, resume: bool | str | None, program: str) -> None:
    """Raise AllDone where `--resume_from_checkpoint auto` finds the finished run of the same program and options. Looks at two small files."""
    path = Path(output_dir or "")
    if _read_resume(resume) != AUTO or output_dir is None or not (path / FINISHED).is_file():
        return
    _refuse_other_program(path, program)
    if not changed_keys(_read_config(path), config_yaml):
        raise AllDone(f"all is done: {path} holds the finished run of this command; another --output_dir starts a new one")


def refuse_used(path: Path, name: str, can_resume: bool = True) -> None:
    """Raise UserError for a folder, if it is there, with anything in it but a lock. The advice is what the program takes.

    name: of the program's default folder, "" where it has none.
    """
    if not path.is_dir() or holds_nothing(path):
        return
    kind = folder_kind(path)
    holds = "" if kind.name == "unknown" else f", it is {kind.is_a}"
    if kind.name == UNFINISHED_WORK:
        cure = f"`--output_dir {path} --{RESUME_KEY} {AUTO}`, given to that program, goes on with it, `--output_dir OTHER` starts elsewhere"
    elif can_resume and checkpoints.list_checkpoints(path):
        cure = f"`--output_dir {path} --{RESUME_KEY} true` continues the run in it, `--output_dir OTHER` starts a new one elsewhere"
    else:
        cure = "`--output_dir OTHER` names another folder"
        cure += f"; without --output_dir it is the next free outputs/{name}-<n>" if name else ""
    raise UserError(f"output folder {path} is not empty{holds}: {cure}")


def holds_nothing(path: Path) -> bool:
    """Whether a folder is empty, or holds nothing but what a start of one of these programs left that had done nothing yet."""
    names = {entry.name for entry in path.iterdir() if not entry.name.startswith(".tmp-")} - {".lock"}
    return not names or (names <= set(LITTER) and _read_config(path).startswith(PROGRAM_LINE))


def _remove_litter(path: Path) -> None:
    """What an earlier start left that had done nothing, for it says nothing of the run that begins."""
    checkpoints.clean_leftovers(path)
    for name in ("unfinished.json", "bad_samples.jsonl"):
        (path / name).unlink(missing_ok=True)


def _refuse_other_program(path: Path, program: str) -> None:
    """Raise UserError where config.yaml says that another program made the run in `path`. Older runs do not say it."""
    first = _read_config(path).partition("\n")[0]
    theirs = first.removeprefix(PROGRAM_LINE) if first.startswith(PROGRAM_LINE) else program
    if program and theirs != program:
        raise UserError(
            f"{path} is a run of {theirs}, not of {program}: continue it by its own program, or start a new run with another --output_dir"
        )


def check_program(output_dir: str | None, name: str, resume: bool | str | None, program: str) -> None:
    """Raise UserError where a run is to be resumed that is not there, in use, of another program, or in a folder that cannot be written.

    Looks at names, rights, the lock and config.yaml, and changes nothing: for before minutes are spent.
    """
    wanted = _read_resume(resume)
    if wanted == AUTO:
        wanted = _resolve_auto(output_dir, name)
    if wanted is None:
        return
    path = _folder_to_resume(output_dir, name, wanted)
    _refuse_other_program(path, program)
    config_in(path)
    if wanted == "true" and not checkpoints.list_checkpoints(path):
        _checkpoint_to_resume(path, wanted, _warn_on_stderr)
    if not os.access(path, os.W_OK | os.X_OK):
        raise UserError(f"{path} cannot be written to; give yourself access to it")
    if is_first_launched():  # the others may look once the first of them has its folder
        refuse_in_use(path)


def check_folder(
    output_dir: str | None, name: str, resume: bool | str | None = None, program: str = "", can_resume: bool = True
) -> Path | None:
    """The checkpoint that `RunFolder.open` would take up, None for a new run. Raises UserError where it would, before minutes are spent.

    Makes and changes nothing, and asks for no lock.
    """
    resume = _read_resume(resume)
    if resume == AUTO:
        resume = _resolve_auto(output_dir, name, can_resume)
    if resume is not None:
        path = _folder_to_resume(output_dir, name, resume)
        _refuse_other_program(path, program)
        checkpoint = _checkpoint_to_resume(path, resume, _warn_on_stderr)
        config_in(path)
        return checkpoint
    path = Path(output_dir if output_dir is not None else "outputs")
    if output_dir is not None:
        refuse_used(path, name, can_resume)
    there = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        problem = "cannot be written to" if there.is_dir() else "is a file"
        raise UserError(f"output folder {path} cannot be used: {there} {problem}; give another --output_dir")
    return None


def checkpoint_ahead(output_dir: str | None, resume: bool | str | None) -> Path | None:
    """The checkpoint from which a run will go on, for what is to be read from it before the folder is opened; None for a start. Refuses nothing."""
    wanted = _read_resume(resume)
    if wanted in (None, "true", AUTO):
        root = Path(output_dir or "")
        return checkpoints.newest_checkpoint(root, lambda _: None) if wanted and output_dir and root.is_dir() else None
    return Path(wanted) if Path(wanted).is_dir() else None


def how_to_go_on(folder: Path | str) -> str:
    """The words of a run that stops before its last step."""
    return f"--output_dir {folder} --{RESUME_KEY} true goes on from it"


def _take_away(path: Path, ours: list[Path], process: int) -> None:
    """Remove what `process` has made for a new run in `path`, files and then folders, unless anything but a config and a lock stands there."""
    with suppress(OSError):
        others = {entry.name for entry in path.iterdir()} - {"config.yaml", ".lock", "unfinished.json"}
        if not others:
            (path / "unfinished.json").unlink(missing_ok=True)
        for made in ours if os.getpid() == process and not others else ():
            made.rmdir() if made.is_dir() else made.unlink()


def _next_free_folder(root: Path, name: str) -> Path:
    """Make and return `root/<name>-<n>`, n above every n in use. Two runs that start together get different ones."""
    root.mkdir(parents=True, exist_ok=True)
    number = 1 + max(_run_numbers(root, name), default=0)
    while True:
        path = root / f"{name}-{number}"
        try:
            path.mkdir()
            return path
        except FileExistsError:
            number += 1


def _folder_to_resume(output_dir: str | None, name: str, resume: str) -> Path:
    if resume not in ("true", AUTO):
        parent = Path(resume).resolve().parent
        if output_dir is not None and Path(output_dir).resolve() != parent:
            raise UserError(
                f"--{RESUME_KEY} {resume} is not in --output_dir {output_dir}: leave out --output_dir to continue "
                f"that run, or start a new one from its weights with --init_from"
            )
        if not os.path.isdir(resume):
            raise UserError(f"--{RESUME_KEY} {resume}: no such folder; give a checkpoint-<step> folder, or true for the newest")
        return Path(resume).parent if output_dir is None else Path(output_dir)
    if output_dir is None:
        numbers = _run_numbers(Path("outputs"), name)
        example = f"outputs/{name}-{max(numbers)}" if numbers else "FOLDER"
        raise UserError(f"--{RESUME_KEY} true needs to know the run: add --output_dir {example}")
    if not os.path.isdir(output_dir):
        raise UserError(f"--{RESUME_KEY} true: there is no folder {output_dir}; leave the option out to start a new run there")
    return Path(output_dir)


def _checkpoint_to_resume(path: Path, resume: str, warn: Callable[[str], None]) -> Path | None:
    """None where `auto` takes up a run that has no whole checkpoint, from its start."""
    if resume in ("true", AUTO):
        newest = checkpoints.newest_checkpoint(path, warn)
        if newest is None and resume == "true":
            raise UserError(f"no whole checkpoint-<step> in {path}: start a new run with another --output_dir")
        return newest
    reason = checkpoints.verify_checkpoint(Path(resume))
    if reason is not None:
        raise UserError(f"--{RESUME_KEY} {resume} is no whole checkpoint: {reason}; `true` takes the newest whole one of its run")
    return Path(resume)


def config_in(path: Path) -> dict[str, Any]:
    """The options in config.yaml of a run's folder, {} where there is none. Raises UserError for a file that holds no options."""
    return _read_mapping(_read_config(path))


def _read_config(path: Path) -> str:
    config = path / "config.yaml"
    if not config.exists():
        return ""
    data = read_bytes(config, str(config), "mend it or move it away", most_bytes=MAX_YAML_BYTES)
    return data.decode("utf-8", errors="replace")


def _read_mapping(text: str) -> dict[str, Any]:
    mapping = yaml_value(text, "config.yaml of the run", "mend it or move it away")
    if mapping is not None and not isinstance(mapping, dict):
        raise UserError("config.yaml of the run must hold lines `key: value`: mend it or move it away")
    return mapping or {}


def _run_numbers(root: Path, name: str) -> list[int]:
    return _numbers(root, rf"{re.escape(name)}-(\d+)")


def _numbers(root: Path, pattern: str) -> list[int]:
    """The numbers in the names of `root` that match the whole pattern."""
    names = [entry.name for entry in root.iterdir()] if root.is_dir() else []
    return [int(match.group(1)) for match in (re.fullmatch(pattern, name) for name in names) if match]


def _warn_on_stderr(text: str) -> None:
    say(f"warning: {text}", file=sys.stderr)
