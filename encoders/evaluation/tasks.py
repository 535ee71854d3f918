"""All tasks by name: what each needs of a data set, what it extracts, and what judges."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from encoders.attention import attention_maps
from encoders.base import Encoder
from encoders.evaluation.dense_tasks import (
    four_layers,
    last_layer,
    run_depth,
    run_depth_dpt,
    run_emergent_segmentation,
    run_segmentation,
)
from encoders.evaluation.frozen import SPLIT_NAMES, FrozenFeatures
from encoders.evaluation.label_tasks import (
    run_copy_detection,
    run_few_shot,
    run_knn,
    run_linear,
    run_logistic,
    run_multi_label,
    run_retrieval,
)
from encoders.evaluation.results import TaskResult
from encoders.evaluation.text_tasks import run_image_text, run_zero_shot
from encoders.image_text import has_text_tower
from vision_core.errors import UserError
from vision_core.images.splits import Splits


@dataclass(frozen=True)
class EncoderTask:
    """A task by which frozen encoders are judged.

    Attributes:
        needs: the annotation without which the task is impossible.
        prepare: extracts the features that the task reads, on all processes.
        run: judges them, on one process.
        settings: names of the options that `run` takes besides the features.
        needs_text, needs_attention: whether the encoder must have a text tower, or attention.
        tests_only: whether the task reads nothing of the training images.
    """

    needs: str
    prepare: Callable[[FrozenFeatures], None]
    run: Callable[..., TaskResult]
    settings: tuple[str, ...] = ()
    needs_text: bool = False
    needs_attention: bool = False
    tests_only: bool = False


def extract_vectors(frozen: FrozenFeatures) -> None:
    """Extract one vector per image of both splits."""
    for split in SPLIT_NAMES:
        frozen.vectors(split)


def extract_last_map(frozen: FrozenFeatures) -> None:
    """Extract the map of the last layer, of both splits."""
    for split in SPLIT_NAMES:
        frozen.maps(split, last_layer(frozen))


def extract_four_maps(frozen: FrozenFeatures) -> None:
    """Extract the maps of four layers, of both splits."""
    for split in SPLIT_NAMES:
        frozen.maps(split, four_layers(frozen))


def extract_nothing(frozen: FrozenFeatures) -> None:
    """Leave the images to the task, which reads what is too large or too special to be kept."""


def data_problem(name: str, splits: Splits) -> str | None:
    """Why the task of this name cannot be run on the data, whatever the encoder, or None."""
    task = TASKS[name]
    for source in [splits.test] if task.tests_only else splits:
        if task.needs not in source.knows:
            return f"{name} needs {task.needs}, which {source.description} does not have"
    return None


def encoder_problem(name: str, encoder: Encoder) -> str | None:
    """Why the task of this name cannot be run with the encoder, whatever the data, or None."""
    if TASKS[name].needs_text and not has_text_tower(encoder.source):
        return f"{name} needs a text tower, which {encoder.name} does not have"
    if TASKS[name].needs_attention:
        try:
            attention_maps(encoder, torch.zeros(1, encoder.num_channels, *encoder.transform.size))
        except UserError as error:
            return f"{name} is not possible: {error}"
    return None


TASKS = {
    "knn": EncoderTask("label", extract_vectors, run_knn),
    "linear": EncoderTask("label", extract_vectors, run_linear, ("linear_iterations",)),
    "logistic": EncoderTask("label", extract_vectors, run_logistic),
    "multi_label": EncoderTask("multi_label", extract_vectors, run_multi_label, ("linear_iterations",)),
    "few_shot": EncoderTask("label", extract_vectors, run_few_shot),
    "retrieval": EncoderTask("label", extract_vectors, run_retrieval, ("ground_truth",)),
    "copy_detection": EncoderTask("copy_of", extract_vectors, run_copy_detection),
    "segmentation": EncoderTask("mask", extract_last_map, run_segmentation, ("dense_iterations",)),
    "depth": EncoderTask("depth", extract_last_map, run_depth, ("dense_iterations", "depth_protocol")),
    "depth_dpt": EncoderTask(
        "depth", extract_four_maps, run_depth_dpt, ("dense_iterations", "depth_protocol")
    ),
    "emergent_segmentation": EncoderTask(
        "mask", extract_nothing, run_emergent_segmentation, needs_attention=True, tests_only=True
    ),
    "zero_shot": EncoderTask("label", extract_nothing, run_zero_shot, needs_text=True, tests_only=True),
    "image_text": EncoderTask("captions", extract_nothing, run_image_text, needs_text=True, tests_only=True),
}
