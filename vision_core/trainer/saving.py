"""Save transformers' Trainer in a run's folder: checkpoints are complete or invisible, and all
processes agree on a failure.

a checkpoint     all processes write into .tmp-<step>-<pid of the main one>; the main process seals
it and shows it by one rename its failure      what keeps one process from writing is kept until all
have written; then all go on, or end, alike published files  the same way aside, then each by one
rename into the run's folder
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import Trainer
from transformers.trainer import TRAINING_ARGS_NAME

from vision_core.errors import UserError
from vision_core.processes.distributed import broadcast_text, gather_objects, is_main_process, wait_for_all
from vision_core.progress import say_above
from vision_core.runs.checkpoints import (
    WRITE_ERRORS,
    begin_aside,
    folder_aside,
    folder_size,
    is_write_error,
    not_written,
    reason_of,
    remove_old_checkpoints,
    seal_folder,
    show,
)
from vision_core.runs.publishing import PUBLISHED, put_in_place
from vision_core.runs.run_folder import RunFolder, how_to_go_on

MAX_FAILED_SAVES_IN_A_ROW = 2


class SavingTrainer(Trainer):
    """Trainer whose saves are whole or invisible.

    run: on the main process, the folder that the run holds. keep: whole checkpoints that stay, None
    for all.
    """

    def __init__(
        self, *args: Any, run: RunFolder | None = None, keep: int | None = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.run = run
        self.keep = keep
        self._aside: Path | None = None  # where a save is being written
        self._failure: Exception | None = None  # of this process, that the others do not know yet
        self._failed_saves = 0  # in a row
        self._saved_step: int | None = None  # by this run
        self._needed_bytes = 0  # by the last save of this run

    @contextmanager
    def publishing(self) -> Iterator[Path]:
        """`with trainer.publishing() as aside:` what all processes write into `aside` stands in the
        run's folder afterwards, the weights last.

        All processes enter it together. Raises UserError, on all of them alike, where one could not
        write.
        """
        root = Path(self.args.output_dir)
        aside = self._folder_aside(PUBLISHED)
        self._do_or_end(aside, root, partial(self._make_aside, aside))
        with self._kept_for_all(OSError, SafetensorError):
            yield aside
        _end_if(self._agreed(aside, root), root)  # before anything is put in place
        self._do_or_end(aside, root, partial(self._put_in_place, aside, root))

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """The Trainer's files. Outside a checkpoint there is no `training_args.bin`: it is a
        pickle, which nobody needs to load the model."""
        super().save_model(output_dir, _internal_call)
        if is_main_process() and not _internal_call:
            Path(output_dir or self.args.output_dir, TRAINING_ARGS_NAME).unlink(missing_ok=True)

    def write_model(self, folder: str, state_dict: dict[str, torch.Tensor] | None) -> None:
        """The model's files of a save, by the main process. state_dict: the weights where they have
        been gathered. A subclass adds its own."""
        super()._save(folder, state_dict)

    def write_beside(self, folder: Path) -> None:
        """What a subclass adds to a checkpoint, by the main process, between the Trainer's files
        and the manifest."""

    def _save(self, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        """The other processes may be on their way into a collective, where an error raised here
        would leave them."""
        with self._kept_for_all(*WRITE_ERRORS):
            self.write_model(output_dir or self.args.output_dir, state_dict)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """A failed save is tried again at the next save step; one that is needed, or the second in
        a row, ends the run. Raises UserError.

        A step that stands saved is not saved again, as where the step behind it was broken off.
        """
        if self._saved_step == self.state.global_step:
            return
        problem = self._write_checkpoint(model, trial)
        self._failed_saves = self._failed_saves + 1 if problem else 0
        self._saved_step = self._saved_step if problem else self.state.global_step
        is_needed = self.control.should_training_stop  # by the last step, or because the run was told to stop
        if problem and (is_needed or self._failed_saves == MAX_FAILED_SAVES_IN_A_ROW):
            raise UserError(problem)
        if problem and is_main_process():
            say_above(
                f"warning: {problem}. The run goes on and tries again {self.state.save_steps:g} steps later"
            )

    def _write_checkpoint(self, model: nn.Module, trial: Any) -> str:
        """`checkpoint-<step>`, whole, or the reason why there is none, the same on all
        processes."""
        root = Path(self.args.output_dir)
        step = self.state.global_step
        aside = self._folder_aside(step)
        target = root / f"checkpoint-{step}"
        for part in (
            partial(self._make_aside, aside, self._needed_bytes or weight_bytes(self.model)),
            partial(self._fill, aside, model, trial),
            partial(self._show, aside, target, step),
        ):
            problem = self._do(aside, target, part)
            if problem:
                return problem
        if is_main_process():
            remove_old_checkpoints(root, step, self.keep)
        if self.run is not None:
            self.run.remove_damaged()
        return ""

    def _folder_aside(self, name: int | str) -> Path:
        """The same on all processes."""
        process = int(broadcast_text(str(os.getpid())))
        return folder_aside(Path(self.args.output_dir), name, process)

    def _make_aside(self, aside: Path, needed: int = 0) -> None:
        """Look first whether there is room: an error in the middle of DeepSpeed's own work may be
        one that nobody can agree on."""
        if is_main_process():
            begin_aside(aside, needed)

    def _fill(self, aside: Path, model: nn.Module, trial: Any) -> None:
        """transformers puts a `checkpoint-<step>` into the folder that `_get_output_dir` names."""
        self._aside = aside
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._aside = None

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._aside) if self._aside is not None else super()._get_output_dir(trial)

    def _show(self, aside: Path, target: Path, step: int) -> None:
        if not is_main_process():
            return
        _lift(aside / target.name)
        self.write_beside(aside)
        if self.run is not None:
            self.run.sync_lines()
        seal_folder(aside, step)
        self._needed_bytes = folder_size(aside)
        show(aside, target)

    def _put_in_place(self, aside: Path, root: Path) -> None:
        if is_main_process():
            put_in_place(aside, root)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """DeepSpeed saves with all processes together, and waits for them in between: its writes
        fail for all or, where that is not possible, end the job."""
        if not self.is_deepspeed_enabled:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        engine = self.model_wrapped
        writer = self.model_wrapped.checkpoint_engine
        engine.checkpoint_engine = WriterWithoutErrors(writer, partial(self._kept_for_all, *WRITE_ERRORS))
        try:
            super()._save_optimizer_and_scheduler(output_dir)
        except WRITE_ERRORS as error:
            step = self.state.global_step
            raise UserError(
                f"checkpoint-{step} in {self.args.output_dir} was not written: {reason_of(error)}; make "
                "room, what was saved before is "
                f"untouched, and {how_to_go_on(self.args.output_dir)}"
            ) from error
        finally:
            engine.checkpoint_engine = writer

    @contextmanager
    def _kept_for_all(self, *kinds: type[Exception]) -> Iterator[None]:
        """Inside, an error of these kinds is kept until `_do` tells all processes."""
        try:
            yield
        except Exception as error:
            if not is_write_error(error, kinds):
                raise
            self._failure = self._failure or error

    def _do(self, aside: Path, target: Path, part: Callable[[], None]) -> str:
        """Have all processes do their part. What kept one of them from it is returned as one line,
        the same on all, and `aside` is removed."""
        with self._kept_for_all(*WRITE_ERRORS):
            part()
        return self._agreed(aside, target)

    def _agreed(self, aside: Path, target: Path) -> str:
        """What has kept any process from writing since the last call, as `_do` returns it."""
        wait_for_all()  # however long one of them writes
        mine = self._failure
        self._failure = None
        reason = next(filter(None, gather_objects(reason_of(mine) if mine else "")), "")
        if not reason:
            return ""
        return broadcast_text(
            str(not_written(aside, target, reason, self._needed_bytes)) if is_main_process() else ""
        )

    def _do_or_end(self, aside: Path, target: Path, part: Callable[[], None]) -> None:
        _end_if(self._do(aside, target, part), target)


def _end_if(problem: str, folder: Path) -> None:
    if problem:
        raise UserError(f"{problem}; then {how_to_go_on(folder)}")


class WriterWithoutErrors:
    """DeepSpeed's writer of files. An error goes to `kept` instead of to one process alone, and its
    file, which may fill the disk, goes too."""

    def __init__(self, writer: Any, kept: Callable[[], Any]) -> None:
        self._writer = writer
        self._kept = kept

    def __getattr__(self, name: str) -> Any:
        return getattr(self._writer, name)

    def save(self, state_dict: Any, path: str) -> None:
        """As the writer's own."""
        is_written = False
        with self._kept():
            self._writer.save(state_dict, path)
            is_written = True
        if not is_written:
            Path(path).unlink(missing_ok=True)


def weight_bytes(model: nn.Module) -> int:
    """Bytes of a model's weights, without those of LoRA's frozen base, which no checkpoint holds.
    Of what ZeRO-3 has sharded, all."""
    is_adapter = hasattr(model, "peft_config")
    saved = [parameter for parameter in model.parameters() if parameter.requires_grad or not is_adapter]
    return sum(
        getattr(parameter, "ds_numel", parameter.numel()) * parameter.element_size() for parameter in saved
    )


def _lift(folder: Path) -> None:
    """Put the content of a folder into the folder around it."""
    for path in folder.iterdir():
        path.rename(folder.parent / path.name)
    folder.rmdir()
