"""Writes the files of a run: checkpoints, the encoder in the root of its folder, the model card,
pictures."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from encoders.evaluation.knn_benchmark import KnnBenchmark
from encoders.preprocess import PUBLISHED_MARGIN, save_image_processor
from pretrain.run.card import CardFacts, write_dinov2_card
from pretrain.run.due import Every
from pretrain.run.monitor import write_figures
from pretrain.run.training_state import PUBLISHED_FILES, save_training_state
from pretrain.self_distillation import SelfDistillation
from vision_core.errors import UserError
from vision_core.images.pixel_options import pixel_options_text
from vision_core.images.source import ImageSource, ImageStream
from vision_core.processes.data_workers import worker_deaths_unnoticed
from vision_core.processes.distributed import broadcast_text
from vision_core.runs.checkpoints import CheckpointNotWritten, replace_files, write_checkpoint, writing
from vision_core.runs.publishing import published
from vision_core.runs.run_folder import RunFolder

MAX_FAILED_SAVES_IN_A_ROW = 2


class EncoderInput(NamedTuple):
    """What the published image processor makes of an image: (height, width), and mean and std per
    channel.

    in_own_scale: images are floats or have other than three channels; they are not pictures of 0 to
    255.
    """

    size: tuple[int, int]
    mean: list[float]
    std: list[float]
    in_own_scale: bool


class RunFiles:
    """The files of one run, written by the main process alone. The others hear whether it could.

    run: the folder, on the main process. benchmark: None where the run is not judged, and on the
    other processes. every: when a checkpoint is due. say: prints a line on the main process.
    """

    def __init__(
        self,
        run: RunFolder | None,
        source: ImageSource | ImageStream,
        method: SelfDistillation,
        optimizer: torch.optim.Optimizer,
        *,
        benchmark: KnnBenchmark | None,
        encoder_input: EncoderInput,
        card: CardFacts,
        every: Every,
        save_total_limit: int,
        say: Callable[[str], None],
    ) -> None:
        self.run = run
        self.source = source
        self.method = method
        self.optimizer = optimizer
        self.benchmark = benchmark
        self.encoder_input = encoder_input
        self.card = card
        self.every = every
        self.save_total_limit = save_total_limit
        self.say = say
        self.failed_saves = 0  # in a row
        self.saved_step: int | None = None  # by this run

    def is_due(self, step: int) -> bool:
        """Whether a checkpoint is written after this step."""
        return self.every.is_due(step)

    def save(self, state: dict[str, Any], references: Mapping[str, float], needed: bool) -> None:
        """Write a checkpoint and refresh the root of the run's folder from it, unless this step has
        been saved. All processes call it together.

        state: of this process; its "step" is the same on all. references: k-NN in percent of what
        the run has to beat. needed: a full disk ends the run, which otherwise tries again at the
        next save. Raises UserError, on all processes alike.
        """
        if self.saved_step == state["step"]:
            return
        problem = broadcast_text(self._problem_of_writing(state, references))
        if not problem:
            self.failed_saves = 0
            self.saved_step = state["step"]
            return
        self.failed_saves += 1
        if needed or self.failed_saves == MAX_FAILED_SAVES_IN_A_ROW:
            raise UserError(problem)
        self.say(f"warning: {problem}. The run goes on and tries again {self.every.steps} steps later")

    def _problem_of_writing(self, state: dict[str, Any], references: Mapping[str, float]) -> str:
        """Write on the main process; what was wrong, or ""."""
        if self.run is None:
            return ""
        try:
            with worker_deaths_unnoticed():
                checkpoint = self._write(state)
                self.publish(checkpoint, state["step"], references, state["knn"])
        except CheckpointNotWritten as error:
            return str(error)
        return ""

    def _write(self, state: dict[str, Any]) -> Path:
        """Write `checkpoint-<step>` with `state`; returns its folder. Raises
        CheckpointNotWritten."""
        checkpoint = write_checkpoint(
            self.run.path, state["step"], lambda folder: self._fill(folder, state), self.save_total_limit
        )
        self.run.remove_damaged()
        return checkpoint

    def publish_newest(
        self, step: int, references: Mapping[str, float], accuracies: Mapping[str, float]
    ) -> None:
        """Publish the encoder of a run that had no step left, from the checkpoint of `step` that it
        has taken up. Only the main process calls it.

        The start before it may have been killed, or have met a full disk, between that checkpoint
        and the files in the root. A run that has saved this step has published it. Raises
        CheckpointNotWritten.
        """
        if self.saved_step != step:
            self.publish(self.run.checkpoint, step, references, accuracies)

    def publish(
        self,
        checkpoint: Path,
        step: int,
        references: Mapping[str, float],
        accuracies: Mapping[str, float],
    ) -> None:
        """Put the encoder of `checkpoint`, which is of `step`, and its card into the run's root.
        Only the main process calls it.

        references, accuracies: k-NN in percent of what the run has to beat, and of its teacher.
        Raises CheckpointNotWritten.
        """
        root = self.run.path
        replace_files(checkpoint, root, PUBLISHED_FILES)
        with writing(root / "README.md"):
            write_dinov2_card(
                root,
                self.card,
                step=step,
                source=self.source,
                backbone=self.method.teacher["backbone"],
                references=references,
                accuracies=accuracies,
                benchmark=self.benchmark,
                in_own_scale=self.encoder_input.in_own_scale,
            )

    def publish_figures(self, references: Mapping[str, float]) -> Path:
        """Write pictures of losses, health, and where there is a benchmark of k-NN and features;
        returns their folder. Only the main process calls it."""
        root = self.run.path
        with published(root) as aside:
            write_figures(
                aside / "figures",
                root / "metrics.jsonl",
                self.method.teacher["backbone"],
                self.method.student["dino_head"].num_prototypes,
                benchmark=self.benchmark,
                references=dict(references),
            )
        return root / "figures"

    def _fill(self, folder: Path, state: dict[str, Any]) -> None:
        """Write what a checkpoint holds into `folder`."""
        save_training_state(folder, self.method, self.optimizer, state)
        size, mean, std, in_own_scale = self.encoder_input
        margin = self.benchmark.margin if self.benchmark else PUBLISHED_MARGIN
        reading = pixel_options_text(self.source.pixel_options)
        save_image_processor(folder, size, mean, std, margin, in_own_scale, reading)
        self.run.sync_lines()
