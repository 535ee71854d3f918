"""The options of `evaluate_encoder.py` and `compare_encoders.py`, and the checks that need no data.
Imports nothing heavy."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from vision_core.arguments import option
from vision_core.errors import UserError
from vision_core.runs.work_folder import check_work, config_of, resume_option

TaskName = Literal[
    "knn", "linear", "logistic", "multi_label", "few_shot", "retrieval", "copy_detection", "segmentation", "depth", "depth_dpt",
    "emergent_segmentation", "zero_shot", "image_text",
]  # fmt: skip
ONE_OF_EACH: list[TaskName] = [
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


@dataclass
class JudgingArguments:
    """What both programs ask for."""

    image_size: int | None = option(
        None, "side at which images are looked at; default: as published", "encoder"
    )
    dense_image_size: list[int] | None = option(
        None, "height and width for the dense tasks; default: the images' own, up to 2,048 patches", "encoder"
    )
    preprocess: Literal["whole", "published"] = option(
        "whole",
        "whole: images no larger than the encoder's size are not cropped; published: as the model's library does it",
        "encoder",
    )
    position_offset: float | None = option(
        None,
        "of DINOv2's position interpolation in transformers; published without registers: 0.1 (docs/encoders.md)",
        "encoder",
    )
    bf16: bool = option(False, "the encoder's weights in bfloat16", "encoder")
    max_train_samples: int | None = option(None, "training images, drawn by the seed; default: all", "data")
    max_test_samples: int | None = option(None, "test images, drawn by the seed; default: all", "data")
    ground_truth: str | None = option(
        None, "JSON of easy, hard and junk images for the task retrieval", "tasks"
    )
    linear_iterations: int = option(2000, "of the linear probe, batches of 128; published: 12,500", "tasks")
    dense_iterations: int = option(
        600, "of segmentation and depth heads; published: 40,000 and 38,400", "tasks"
    )
    depth_protocol: Literal["all", "nyu"] = option(
        "all",
        "where depth is judged: at all known pixels, or in NYU's Eigen crop from 0.001 to 10 m",
        "tasks",
    )
    max_bad_fraction: float = option(
        0.01, "stop when more than this share of the training or of the test images is unreadable", "data"
    )
    seed: int = option(0, "of draws, heads and untrained encoders", "tasks")
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
    """Which encoder is judged, on which images, by what."""

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
    tasks: list[TaskName] = option(["knn", "linear"], "what to judge by", "tasks")


@dataclass
class CompareArguments(JudgingArguments):
    """Which encoders are compared, on which images, by what."""

    encoders: list[str] = option(
        ["tiny:dinov2", "tiny:siglip", "tiny:clip", "tiny:vit_mae", "raw_pixels"],
        "encoders; docs/encoders.md",
        "encoder",
    )
    datasets: list[str] = option(
        ["scenes?count=600"], "data sets, each with training and test images; docs/data.md", "data"
    )
    tasks: list[TaskName] | None = option(
        None, "what to judge by, wherever data and encoder allow it; default: one task of each kind", "tasks"
    )


def check_evaluation(args: EvaluateArguments) -> None:
    """Raise `UserError` for what cannot work, before anything is loaded."""
    check_judging(args, args.tasks, "evaluation")


def check_comparison(args: CompareArguments) -> None:
    """Raise `UserError` for what cannot work, before anything is loaded."""
    if not args.encoders or not args.datasets:
        raise UserError("--encoders and --datasets need at least one name each")
    check_judging(args, ONE_OF_EACH if args.tasks is None else args.tasks, "comparison")


def check_judging(args: JudgingArguments, tasks: Sequence[str], name: str) -> None:
    """What both programs check. name: of the default folder."""
    if not tasks or len(set(tasks)) < len(tasks):
        raise UserError(
            f"--tasks {' '.join(tasks) or '[]'}: name at least one of {', '.join(get_args(TaskName))}, each once"
        )
    check_counts(
        args, "linear_iterations", "dense_iterations", "batch_size", "max_train_samples", "max_test_samples"
    )
    if args.dataloader_num_workers < 0:
        raise UserError(
            f"--dataloader_num_workers {args.dataloader_num_workers} is not possible; give 0 or more"
        )
    if not 0 <= args.max_bad_fraction <= 1:
        raise UserError(
            f"--max_bad_fraction {args.max_bad_fraction} is not possible; give a share between 0 and 1"
        )
    if args.dense_image_size is not None and len(args.dense_image_size) != 2:
        raise UserError(
            f"--dense_image_size {' '.join(map(str, args.dense_image_size))}: give height and width"
        )
    check_work(args.output_dir, name, config_of(args), args.resume_from_checkpoint, PROGRAMS[name])


def check_counts(args: Any, *names: str) -> None:
    """Raise `UserError` for an option of one of these names that is below 1; None is left to its
    default."""
    for name in names:
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise UserError(f"--{name} {getattr(args, name)} is not possible; give 1 or more")
