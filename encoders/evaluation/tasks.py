"""All tasks by name: what each needs of a data set, what it extracts, and what judges."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from encoders.evaluation.dense_tasks import (
    four_layers,
    last_layer,
    run_depth,
    run_depth_dpt,
    run_emergent_segmentation,
    run_segmentation,
)
from encoders.evaluation.frozen import FrozenFeatures
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


@dataclass(frozen=True)
class Task:
    """needs: the annotation without which the task is impossible. prepare: extracts what it reads,
    on all processes. run: judges, on one process. settings: names of the options that `run` takes
    besides the features. needs_text, needs_attention: whether the encoder must have a text tower,
    or attention.
    tests_only: whether nothing of the training images is read.
    """

    needs: str
    prepare: Callable[[FrozenFeatures], None]
    run: Callable[..., TaskResult]
    settings: tuple[str, ...] = ()
    needs_text: bool = False
    needs_attention: bool = False
    tests_only: bool = False


def _vectors(frozen: FrozenFeatures) -> None:
    for split in ("train", "test"):
        frozen.vectors(split)


def _last_map(frozen: FrozenFeatures) -> None:
    for split in ("train", "test"):
        frozen.maps(split, last_layer(frozen))


def _four_maps(frozen: FrozenFeatures) -> None:
    for split in ("train", "test"):
        frozen.maps(split, four_layers(frozen))


def _nothing(frozen: FrozenFeatures) -> None:
    """What the task reads is too large or too special to be kept."""


TASKS = {
    "knn": Task("label", _vectors, run_knn),
    "linear": Task("label", _vectors, run_linear, ("linear_iterations",)),
    "logistic": Task("label", _vectors, run_logistic),
    "multi_label": Task("multi_label", _vectors, run_multi_label, ("linear_iterations",)),
    "few_shot": Task("label", _vectors, run_few_shot),
    "retrieval": Task("label", _vectors, run_retrieval, ("ground_truth",)),
    "copy_detection": Task("copy_of", _vectors, run_copy_detection),
    "segmentation": Task("mask", _last_map, run_segmentation, ("dense_iterations",)),
    "depth": Task("depth", _last_map, run_depth, ("dense_iterations", "depth_protocol")),
    "depth_dpt": Task("depth", _four_maps, run_depth_dpt, ("dense_iterations", "depth_protocol")),
    "emergent_segmentation": Task(
        "mask", _nothing, run_emergent_segmentation, needs_attention=True, tests_only=True
    ),
    "zero_shot": Task("label", _nothing, run_zero_shot, needs_text=True, tests_only=True),
    "image_text": Task("captions", _nothing, run_image_text, needs_text=True, tests_only=True),
}
