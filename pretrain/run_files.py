"""What a pretraining run leaves in its folder: checkpoints, the encoder that others load with its card, and pictures at the end."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from encoders.evaluation.knn_benchmark import KnnBenchmark
from encoders.preprocess import PUBLISHED_MARGIN, save_image_processor
from pretrain.card import write_card
from pretrain.dinov2_args import DINOv2Arguments
from pretrain.dinov2_build import evaluation_size
from pretrain.monitor import write_figures
from pretrain.self_distillation import SelfDistillation
from pretrain.training_state import PUBLISHED_FILES, save_training_state
from vision_core.checkpoints import CheckpointNotWritten, replace_files, write_checkpoint, writing
from vision_core.data_workers import worker_deaths_unnoticed
from vision_core.distributed import broadcast_text
from vision_core.errors import UserError
from vision_core.images.pixel_options import pixel_options_text
from vision_core.images.sources import ImageSource, ImageStream
from vision_core.publishing import published
from vision_core.run_folder import RunFolder

MAX_FAILED_SAVES_IN_A_ROW = 2


class RunFiles:
    """Of one run, written by the main process alone. The others hear whether it could.

    run: the folder, on the main process. benchmark: None where the run is not judged, and on the others. in_own_scale: images are floats or of
    other than three channels, no pictures of 0 to 255. say: prints a line on the main process.
    """

    def __init__(
        self,
        args: DINOv2Arguments,
        run: RunFolder | None,
        source: ImageSource | ImageStream,
        method: SelfDistillation,
        optimizer: torch.optim.Optimizer,
        benchmark: KnnBenchmark | None,
        in_own_scale: bool,
        say: Callable[[str], None],
    ) -> None:
        self.args, self.run, self.source, self.method, self.optimizer = args, run, source, method, optimizer
        self.benchmark, self.in_own_scale, self.say = benchmark, in_own_scale, say
        self.failed_saves = 0  # in a row
        self.saved_step: int | None = None  # by this run

    def save(self, state: dict[str, Any], references: Mapping[str, float], needed: bool) -> None:
        """A checkpoint, and the run's root refreshed from it, unless the step stands saved. All processes call it together.

        state: of this process; its "step" is the same on all. references: k-NN in percent of what the run has to beat. needed: a full disk
        ends the run, which otherwise tries again at the next save. Raises UserError, on all processes alike.
        """
        if self.saved_step == state["step"]:
            return
        problem = ""
        if self.run is not None:
            try:
                with worker_deaths_unnoticed():
                    self.publish(self._write(state), state["step"], references, state["knn"])
            except CheckpointNotWritten as error:
                problem = str(error)
        problem = broadcast_text(problem)
        self.failed_saves = self.failed_saves + 1 if problem else 0
        if problem and (needed or self.failed_saves == MAX_FAILED_SAVES_IN_A_ROW):
            raise UserError(problem)
        if problem:
            self.say(f"warning: {problem}. The run goes on and tries again {self.args.save_steps} steps later")
        else:
            self.saved_step = state["step"]

    def publish_newest(self, step: int, references: Mapping[str, float], accuracies: Mapping[str, float]) -> None:
        """The published files of a run that had no step left, from the checkpoint of `step` that it has taken up.

        The start before it may have been killed, or have met a full disk, between that checkpoint and the root's files.
        A run that has saved this step has published it. For the main process. Raises CheckpointNotWritten.
        """
        if self.saved_step != step:
            self.publish(self.run.checkpoint, step, references, accuracies)

    def publish(self, checkpoint: Path, step: int, references: Mapping[str, float], accuracies: Mapping[str, float]) -> None:
        """The encoder of `checkpoint`, which is of `step`, and its model card into the run's root. For the main
        process.

        references, accuracies: k-NN in percent of what the run has to beat, and of its teacher. Raises
        CheckpointNotWritten.
        """
        root = self.run.path
        replace_files(checkpoint, root, PUBLISHED_FILES)
        with writing(root / "README.md"):
            write_card(
                root,
                self.args,
                step=step,
                source=self.source,
                backbone=self.method.teacher["backbone"],
                references=references,
                accuracies=accuracies,
                benchmark=self.benchmark,
                in_own_scale=self.in_own_scale,
            )

    def publish_figures(self, references: Mapping[str, float]) -> Path:
        """Losses, health, and where there is a benchmark k-NN and features of its images; their folder. For the main process."""
        root, backbone = self.run.path, self.method.teacher["backbone"]
        with published(root) as aside:
            write_figures(aside / "figures", root / "metrics.jsonl", backbone, self.args.num_prototypes, self.benchmark, dict(references))
        return root / "figures"

    def _write(self, state: dict[str, Any]) -> Path:
        """`checkpoint-<step>` with `state`. Raises CheckpointNotWritten."""
        checkpoint = write_checkpoint(self.run.path, state["step"], lambda folder: self._fill(folder, state), self.args.save_total_limit)
        self.run.remove_damaged()
        return checkpoint

    def _fill(self, folder: Path, state: dict[str, Any]) -> None:
        args = self.args
        save_training_state(folder, self.method, self.optimizer, state)
        margin = self.benchmark.margin if self.benchmark else PUBLISHED_MARGIN
        reading = pixel_options_text(self.source.pixel_options)
        save_image_processor(folder, evaluation_size(args), args.image_mean, args.image_std, margin, self.in_own_scale, reading)
        self.run.sync_lines()
