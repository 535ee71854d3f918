"""The folder of one run: who may write in it, its config, its metrics, and the checkpoint from which it goes on.

    output_dir/   config.yaml  metrics.jsonl  bad_samples.jsonl  checkpoint-<step>/  finished.json  .lock    and the model's own files

Only the main process opens it; the others are told its path. Opening an old run looks and changes nothing; `begin`, which is called once
everything else has been checked, brings the folder back to its checkpoint; `finish` marks it as done. A new folder of a program that ends
by an error before anything but its config stands in it is taken away again, so that the command, mended, starts with the same --output_dir.
"""

import os
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from vision_core import checkpoints
from vision_core.errors import UserError, undo_if_failed
from vision_core.folder_checks import (
    AUTO,
    FINISHED,
    PROGRAM_LINE,
    RESUME_KEY,
    changed_keys,
    checkpoint_to_resume,
    folder_to_resume,
    numbers_in,
    read_config,
    refuse_other_program,
    refuse_used,
    resolve_auto,
    resume_word,
    run_numbers,
    warn_on_stderr,
)
from vision_core.folder_lock import FolderLock
from vision_core.json_lines import JsonLines


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
        self.changes = changed_keys(read_config(path), config_yaml) if is_old else {}
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
        warn = warn or warn_on_stderr
        config_yaml = f"{PROGRAM_LINE}{program}\n{config_yaml}" if program else config_yaml
        resume = resume_word(resume)
        try:
            if resume == AUTO:
                resume = resolve_auto(output_dir, name, can_resume)
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
        path = folder_to_resume(output_dir, name, resume)
        refuse_other_program(path, program)
        lock = FolderLock(path, warn)
        shown: list[tuple[Path, Path]] = []
        try:
            shown = checkpoints.finish_saves(path)
            checkpoint = checkpoint_to_resume(path, resume, warn)
            if check is not None and checkpoint is not None:
                check(checkpoint)
            run = cls(path, lock, checkpoint, warn, config_yaml, is_old=True)
        except BaseException:
            checkpoints.hide_again(shown)
            lock.put_back()
            raise
        undo_if_failed(partial(run._leave_as_found, os.getpid(), shown))
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
            checkpoints.write_text_atomically(self.path / FINISHED, "{}\n")

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

    def _leave_as_found(self, process: int, shown: list[tuple[Path, Path]]) -> None:
        """Of an old run that was refused before `begin`, by `process`, not even a name or the lock's file is another
        one.

        shown: the renames of `finish_saves`.
        """
        if not self._has_begun and os.getpid() == process:
            checkpoints.hide_again(shown)
            self._lock.put_back()

    def _keep_old_config(self, config_yaml: str) -> None:
        config = self.path / "config.yaml"
        if not self.changes and config.exists():
            return
        if config.exists():
            number = 1 + max((int(k) for k in numbers_in(self.path, r"config-(\d+)\.yaml")), default=0)
            checkpoints.write_text_atomically(self.path / f"config-{number}.yaml", read_config(self.path))
            listed = ", ".join(f"{key} {old} -> {new}" for key, (old, new) in self.changes.items())
            self._warn(f"resuming with a changed config: {listed}; the old one is kept as config-{number}.yaml")
        checkpoints.write_text_atomically(config, config_yaml)

    def _set_aside_later_checkpoints(self) -> None:
        """Checkpoints after the resumed step are damaged or of a course that is left: never to be resumed. So are unfinished ones before it."""
        for path in checkpoints.list_checkpoints(self.path):
            is_later = int(path.name.removeprefix("checkpoint-")) > self.step
            if is_later or not (path / checkpoints.MANIFEST).exists():
                number = 1 + max((int(k) for k in numbers_in(self.path, rf"set-aside-(\d+)-{path.name}")), default=0)
                name = f"set-aside-{number}-{path.name}"
                is_damaged = checkpoints.set_aside(path, name)
                what = "is damaged" if is_damaged else f"is whole and later than step {self.step}"
                end = "to be removed once a newer one stands" if is_damaged else "which stays until you remove it"
                self._warn(f"{path} {what}: now {name}, {end}")


def _remove_litter(path: Path) -> None:
    """What an earlier start left that had done nothing, for it says nothing of the run that begins."""
    checkpoints.clean_leftovers(path)
    for name in ("unfinished.json", "bad_samples.jsonl"):
        (path / name).unlink(missing_ok=True)


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
    number = 1 + max(run_numbers(root, name), default=0)
    while True:
        path = root / f"{name}-{number}"
        try:
            path.mkdir()
            return path
        except FileExistsError:
            number += 1
