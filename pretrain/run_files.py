"""What a pretraining run leaves in its folder: checkpoints, the encoder that others load with its card, and pictures at the end."""

from collections.abc import Mapping
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
from vision_core.checkpoints import replace_files, write_checkpoint, writing
from vision_core.images.pixel_options import pixel_options_text
from vision_core.images.sources import ImageSource, ImageStream
from vision_core.publishing import published
from vision_core.run_folder import RunFolder


class RunFiles:
    """Of one run, written by the main process alone.

    benchmark: None where the run is not judged. in_own_scale: images are floats or of other than three channels, no pictures of 0 to 255.
    """

    def __init__(
        self,
        args: DINOv2Arguments,
        run: RunFolder,
        source: ImageSource | ImageStream,
        method: SelfDistillation,
        optimizer: torch.optim.Optimizer,
        benchmark: KnnBenchmark | None,
        in_own_scale: bool,
    ) -> None:
        self.args, self.run, self.source, self.method, self.optimizer = args, run, source, method, optimizer
        self.benchmark, self.in_own_scale = benchmark, in_own_scale

    def save(self, state: dict[str, Any], references: Mapping[str, float]) -> None:
        """`checkpoint-<step>` with `state`, then the published files and the model card in the run's root.

        references: k-NN in percent of what the run has to beat. Raises CheckpointNotWritten.
        """
        root = self.run.path
        checkpoint = write_checkpoint(root, state["step"], lambda folder: self._fill(folder, state), self.args.save_total_limit)
        self.run.remove_damaged()
        replace_files(checkpoint, root, PUBLISHED_FILES)
        with writing(root / "README.md"):
            write_card(
                root,
                self.args,
                step=state["step"],
                source=self.source,
                backbone=self.method.teacher["backbone"],
                references=references,
                accuracies=state["knn"],
                benchmark=self.benchmark,
                in_own_scale=self.in_own_scale,
            )

    def publish_figures(self, references: Mapping[str, float]) -> Path:
        """Losses, health, and where there is a benchmark k-NN and features of its images; their folder."""
        root, backbone = self.run.path, self.method.teacher["backbone"]
        with published(root) as aside:
            write_figures(aside / "figures", root / "metrics.jsonl", backbone, self.args.num_prototypes, self.benchmark, dict(references))
        return root / "figures"

    def _fill(self, folder: Path, state: dict[str, Any]) -> None:
        args = self.args
        save_training_state(folder, self.method, self.optimizer, state)
        margin = self.benchmark.margin if self.benchmark else PUBLISHED_MARGIN
        reading = pixel_options_text(self.source.pixel_options)
        save_image_processor(folder, evaluation_size(args), args.image_mean, args.image_std, margin, self.in_own_scale, reading)
        self.run.sync_lines()
