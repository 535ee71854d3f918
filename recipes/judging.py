"""What evaluating one encoder and comparing several have in common: processes, tasks, tables."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist

from encoders.attention import attention_maps
from encoders.base import Encoder
from encoders.evaluation.frozen import FrozenFeatures
from encoders.evaluation.results import TaskResult
from encoders.evaluation.tasks import TASKS
from encoders.image_text import has_text_tower
from encoders.load import load_encoder
from vision_core.arguments import arguments_to_yaml, option
from vision_core.distributed import broadcast_text, is_first_launched, is_main_process
from vision_core.errors import UserError
from vision_core.images.splits import Splits
from vision_core.run_folder import RunFolder, check_folder

TaskName = Literal[
    "knn", "linear", "logistic", "few_shot", "retrieval", "copy_detection", "segmentation", "depth", "depth_dpt", "emergent_segmentation",
    "zero_shot", "image_text",
]  # fmt: skip
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
PARADIGMS = {
    "dinov2": "self-distillation", "dinov2_with_registers": "self-distillation", "dinov3_vit": "self-distillation", "dinov3_convnext": "self-distillation",
    "siglip_vision_model": "image-text", "siglip2_vision_model": "image-text", "clip_vision_model": "image-text", "metaclip_2_vision_model": "image-text",
    "vit_mae": "reconstruction", "ijepa": "reconstruction", "aimv2_vision_model": "reconstruction", "internvl_vision": "image-text",
}  # fmt: skip


@dataclass
class JudgingArguments:
    """What both programs ask for."""

    image_size: int | None = option(None, "side at which images are looked at; default: as published", "encoder")
    dense_image_size: list[int] | None = option(
        None, "height and width for the dense tasks; default: the images' own, up to 2,048 patches", "encoder"
    )
    precision: Literal["float32", "bfloat16"] = option("float32", "of the encoder's weights", "encoder")
    max_train_images: int | None = option(None, "training images, drawn by the seed; default: all", "data")
    max_test_images: int | None = option(None, "test images, drawn by the seed; default: all", "data")
    ground_truth: str | None = option(None, "JSON of easy, hard and junk images for the task retrieval", "tasks")
    linear_iterations: int = option(2000, "of the linear probe, batches of 128; published: 12,500", "tasks")
    dense_iterations: int = option(600, "of segmentation and depth heads; published: 40,000 and 38,400", "tasks")
    depth_protocol: Literal["all", "nyu"] = option(
        "all", "where depth is judged: at all known pixels, or in NYU's Eigen crop from 0.001 to 10 m", "tasks"
    )
    seed: int = option(0, "of draws, heads and untrained encoders", "tasks")
    batch_size: int = option(64, "images that go through the encoder at once", "run")
    dataloader_num_workers: int = option(0, "processes that read images", "run")
    cache_dir: str | None = option(None, "where features are kept; default: a folder in the user's cache", "run")
    output_dir: str | None = option(None, "new folder for table, JSON and pictures; default: the next free one in outputs/", "run")


def check_arguments(args: JudgingArguments, tasks: Sequence[str], name: str = "evaluation") -> None:
    """Raise `UserError` for what cannot work, before anything is loaded. name: of the default folder."""
    if not tasks or len(set(tasks)) < len(tasks):
        raise UserError(f"--tasks {' '.join(tasks) or '[]'}: name at least one of {', '.join(TASKS)}, each once")
    check_counts(args, "linear_iterations", "dense_iterations", "batch_size", "max_train_images", "max_test_images")
    if args.dataloader_num_workers < 0:
        raise UserError(f"--dataloader_num_workers {args.dataloader_num_workers} is not possible; give 0 or more")
    if args.dense_image_size is not None and len(args.dense_image_size) != 2:
        raise UserError(f"--dense_image_size {' '.join(map(str, args.dense_image_size))}: give height and width")
    if is_first_launched():
        check_folder(args.output_dir, name, can_resume=False)


def check_counts(args: Any, *names: str) -> None:
    """Raise `UserError` for an option of one of these names that is below 1; None is left to its default."""
    for name in names:
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise UserError(f"--{name} {getattr(args, name)} is not possible; give 1 or more")


def open_folder(args: JudgingArguments, name: str) -> Path:
    """The new folder of this run with its options in it, the same on every process."""
    path = ""
    if is_main_process():
        run = RunFolder.open(args.output_dir, name, arguments_to_yaml(args), can_resume=False)
        run.close()
        path = str(run.path)
    return Path(broadcast_text(path))


def load(source: str, args: JudgingArguments, device: torch.device) -> Encoder:
    """The frozen encoder on its device."""
    return load_encoder(source, image_size=args.image_size, dtype=DTYPES[args.precision], seed=args.seed).to(device)


def frozen_features(encoder: Encoder, splits: Splits, args: JudgingArguments) -> FrozenFeatures:
    """The encoder on the data."""
    return FrozenFeatures(
        encoder,
        splits,
        cache_folder(args.cache_dir),
        limits=(args.max_train_images, args.max_test_images),
        dense_size=tuple(args.dense_image_size) if args.dense_image_size else None,
        seed=args.seed,
        batch_size=args.batch_size,
        num_workers=args.dataloader_num_workers,
        progress=True,
    )


def join_processes() -> torch.device:
    """Start the process group under torchrun or accelerate; this process's device.

    What processes tell each other here are Python objects, so gloo does on GPUs too. The others wait for as long as the main one works at a task.
    """
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not dist.is_initialized():
        dist.init_process_group("gloo", timeout=timedelta(days=7))
    return device


def cache_folder(given: str | None) -> Path:
    """Where features are kept: the folder that was named, or one in the user's cache."""
    return Path(given) if given else Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "vision-encoder-fusion" / "features"


def problem_with_data(name: TaskName, splits: Splits) -> str | None:
    """Why a task cannot be run on the data, whatever the encoder, or None."""
    for source in [splits.test] if TASKS[name].tests_only else splits:
        if TASKS[name].needs not in source.knows:
            return f"{name} needs {TASKS[name].needs}, which {source.description} does not have"
    return None


def problem_with_encoder(name: TaskName, encoder: Encoder) -> str | None:
    """Why a task cannot be run with the encoder, whatever the data, or None."""
    if TASKS[name].needs_text and not has_text_tower(encoder.source):
        return f"{name} needs a text tower, which {encoder.name} does not have"
    if TASKS[name].needs_attention:
        try:
            attention_maps(encoder, torch.zeros(1, encoder.num_channels, *encoder.transform.size))
        except UserError as error:
            return f"{name} is not possible: {error}"
    return None


def run_tasks(
    frozen: FrozenFeatures, tasks: Sequence[TaskName], args: JudgingArguments, say: Callable[[str], None]
) -> dict[TaskName, TaskResult]:
    """The results by task, on the main process; the others help to extract features and get none."""
    for name in tasks:
        TASKS[name].prepare(frozen)
    if not is_main_process():
        return {}
    results = {}
    for name in tasks:
        results[name] = TASKS[name].run(frozen, **{key: getattr(args, key) for key in TASKS[name].settings})
        say(f"  {name:<22}" + ", ".join(f"{metric} {shown(value)}" for metric, value in results[name].metrics.items()))
    return results


def paradigm(encoder: Encoder) -> str:
    """How the family of an encoder is trained, as far as its type tells."""
    if encoder.library == "open_clip":
        return "image-text"
    if encoder.library == "transformers":
        return PARADIGMS.get(encoder.model.config.model_type, "other")
    return "none" if encoder.library == "raw_pixels" else "see its model card"


def protocol_of(encoder: Encoder) -> str:
    """How an encoder looks at images, in words."""
    transform = encoder.transform
    cut = (
        "whole image squashed"
        if transform.fit == "squash"
        else f"centre crop of {1 / transform.margin:.0%}"
        if transform.margin > 1
        else "centre crop"
    )
    vector = "mean of the patches" if encoder.pooled_width is None else f"published image vector of {encoder.pooled_width}"
    return "{} x {} pixels, {}, {} interpolation; {}; {} of stride {}".format(
        *transform.size, cut, transform.interpolation, vector, f"{encoder.num_layers} layers of {encoder.width}", encoder.stride
    )


def shown(value: float) -> str:
    """A figure with three significant digits below 10, one decimal above."""
    return f"{value:.3g}" if abs(value) < 10 else f"{value:.1f}"


def write_json(path: Path, report: Any) -> None:
    """Dataclasses, numbers and texts as JSON; pictures are left out."""
    path.write_text(json.dumps(report, indent=1, default=_plain) + "\n", encoding="utf-8")


def result_as_json(result: TaskResult) -> dict[str, Any]:
    """Everything but the picture."""
    return {field.name: getattr(result, field.name) for field in fields(result) if field.name != "picture"}


def markdown_table(rows: Sequence[Mapping[str, str]]) -> str:
    """Rows under the columns of the first appearance; an empty cell where a row lacks one."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    lines = [columns, ["---"] * len(columns), *([row.get(name, "") for name in columns] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return asdict(value)
    if isinstance(value, torch.Tensor):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is no JSON")
