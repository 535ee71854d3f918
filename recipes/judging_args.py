"""The options of `evaluate_encoder.py` and `compare_encoders.py`, and the checks that need no data.
Imports nothing heavy."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from vision_core.arguments import option
from vision_core.errors import UserError
from vision_core.runs.work_folder import check_work, config_of, resume_option

TaskName = Literal[
    "knn",
    "linear",
    "logistic",
    "multi_label",
    "few_shot",
    "retrieval",
    "copy_detection",
    "segmentation",
    "depth",
    "depth_dpt",
    "emergent_segmentation",
    "zero_shot",
    "image_text",
]
ONE_TASK_OF_EACH_KIND: list[TaskName] = [
    "knn",
    "linear",
    "segmentation",
    "depth",
    "copy_detection",
    "emergent_segmentation",
]

PROGRAMS = {
    "evaluation": "recipes/evaluate_encoder.py",
    "comparison": "recipes/compare_encoders.py",
}  # by the name of the default folder

TASK_SETTINGS = ("ground_truth", "linear_iterations", "dense_iterations", "depth_protocol")
SUITE_OPTIONS = (
    "image_size",
    "dense_image_size",
    "preprocess",
    "position_offset",
    "bf16",
    "seed",
    "max_train_samples",
    "max_test_samples",
    "max_bad_fraction",
    "batch_size",
    "cache_dir",
)


@dataclass
class JudgingArguments:
    """The options that both programs have."""

    image_size: int | None = option(
        None, "side at which images are looked at; default: as published", "encoder"
    )
    dense_image_size: list[int] | None = option(
        None, "height and width for the dense tasks; default: the images' own, up to 2,048 patches", "encoder"
    )
    preprocess: Literal["whole", "published"] = option(
        "whole",
        "whole: images no larger than the encoder's size are not cropped; "
        "published: images are prepared as the model's library does it",
        "encoder",
    )
    position_offset: float | None = option(
        None,
        "of DINOv2's position interpolation in transformers; published without registers: 0.1 (docs/encoders.md)",
        "encoder",
    )
    bf16: bool = option(False, "load the encoder's weights in bfloat16", "encoder")
    max_train_samples: int | None = option(
        None, "how many training images are used, drawn by the seed; default: all", "data"
    )
    max_test_samples: int | None = option(
        None, "how many test images are used, drawn by the seed; default: all", "data"
    )
    ground_truth: str | None = option(
        None, "JSON of easy, hard and junk images for the task retrieval", "tasks"
    )
    linear_iterations: int = option(
        2000, "iterations of the linear probe, in batches of 128; published: 12,500", "tasks"
    )
    dense_iterations: int = option(
        600, "iterations of the segmentation and depth heads; published: 40,000 and 38,400", "tasks"
    )
    depth_protocol: Literal["all", "nyu"] = option(
        "all",
        "where depth is judged: at all known pixels, or in NYU's Eigen crop from 0.001 to 10 m",
        "tasks",
    )
    max_bad_fraction: float = option(
        0.01, "stop when more than this share of the training or of the test images is unreadable", "data"
    )
    seed: int = option(0, "seed of draws, of heads and of untrained encoders", "tasks")
    batch_size: int = option(64, "images that go through the encoder at once", "run")
    dataloader_num_workers: int = option(0, "processes that read images", "run")
    cache_dir: str | None = option(
        None, "where features are kept; default: a folder in the user's cache", "run"
    )
    output_dir: str | None = option(
        None, "new folder for table, JSON and pictures; default: the next free one in outputs/", "run"
    )
    resume_from_checkpoint: str | None = resume_option()


@dataclass
class EvaluateArguments(JudgingArguments):
    """The options that say which encoder is judged, on which images, by which tasks."""

    encoder: str = option(
        "tiny:dinov2",
        "folder, hf:NAME, timm:NAME, open_clip:MODEL/TAG, raw_pixels, ...; docs/encoders.md",
        "encoder",
    )
    dataset: str = option(
        "scenes",
        "images to learn from and to test on: a folder with both, or a source with {split} in it; docs/data.md",
        "data",
    )
    test_dataset: str | None = option(
        None, "the test images, where --dataset names the training images alone", "data"
    )
    tasks: list[TaskName] = option(["knn", "linear"], "the tasks to judge by", "tasks")


@dataclass
class CompareArguments(JudgingArguments):
    """The options that say which encoders are compared, on which images, by which tasks."""

    encoders: list[str] = option(
        ["tiny:dinov2", "tiny:siglip", "tiny:clip", "tiny:vit_mae", "raw_pixels"],
        "encoders; docs/encoders.md",
        "encoder",
    )
    datasets: list[str] = option(
        ["scenes?count=600"], "data sets, each with training and test images; docs/data.md", "data"
    )
    tasks: list[TaskName] | None = option(
        None,
        "the tasks to judge by, wherever data and encoder allow it; default: one task of each kind",
        "tasks",
    )


def suite_options(args: JudgingArguments) -> dict[str, Any]:
    """The options as the keyword arguments of `EvaluationSuite`, all but its device."""
    options = {name: getattr(args, name) for name in SUITE_OPTIONS}
    options["num_workers"] = args.dataloader_num_workers
    options["task_settings"] = {name: getattr(args, name) for name in TASK_SETTINGS}
    return options


def folder_options(args: JudgingArguments, name: str) -> dict[str, Any]:
    """The options as the arguments of `check_work` and `SharedWorkFolder`. name: of the default
    folder."""
    return {
        "output_dir": args.output_dir,
        "name": name,
        "config_yaml": config_of(args),
        "resume": args.resume_from_checkpoint,
        "program": PROGRAMS[name],
    }


def check_evaluation(args: EvaluateArguments) -> None:
    """Raise `UserError` for what cannot work, before anything is loaded."""
    check_judging(args, args.tasks, "evaluation")


def check_comparison(args: CompareArguments) -> None:
    """Raise `UserError` for what cannot work, before anything is loaded."""
    if not args.encoders or not args.datasets:
        raise UserError("--encoders and --datasets need at least one name each")
    check_judging(args, compared_tasks(args), "comparison")


def compared_tasks(args: CompareArguments) -> list[TaskName]:
    """The tasks of a comparison: those that were named, or one of each kind."""
    return ONE_TASK_OF_EACH_KIND if args.tasks is None else args.tasks


def check_judging(args: JudgingArguments, tasks: Sequence[str], name: str) -> None:
    """Raise `UserError` for options of both programs that cannot work. name: of the default
    folder."""
    if not tasks or len(set(tasks)) < len(tasks):
        known = ", ".join(get_args(TaskName))
        raise UserError(f"--tasks {' '.join(tasks) or '[]'}: name at least one of {known}, each once")
    check_counts(
        args, "linear_iterations", "dense_iterations", "batch_size", "max_train_samples", "max_test_samples"
    )
    workers = args.dataloader_num_workers
    if workers < 0:
        raise UserError(f"--dataloader_num_workers {workers} is not possible; give 0 or more")
    share = args.max_bad_fraction
    if not 0 <= share <= 1:
        raise UserError(f"--max_bad_fraction {share} is not possible; give a share between 0 and 1")
    size = args.dense_image_size
    if size is not None and len(size) != 2:
        raise UserError(f"--dense_image_size {' '.join(map(str, size))}: give height and width")
    check_work(**folder_options(args, name))


def check_counts(args: Any, *names: str) -> None:
    """Raise `UserError` for an option of one of these names that is below 1; None is left to its
    default."""
    for name in names:
        count = getattr(args, name)
        if count is not None and count < 1:
            raise UserError(f"--{name} {count} is not possible; give 1 or more")
