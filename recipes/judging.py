"""What evaluating one encoder and comparing several have in common: processes, tasks, tables."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from encoders.attention import attention_maps
from encoders.base import Encoder
from encoders.evaluation.frozen import FrozenFeatures
from encoders.evaluation.kept_results import KeptResults
from encoders.evaluation.results import TaskResult
from encoders.evaluation.tasks import TASKS
from encoders.image_text import has_text_tower
from encoders.load import load_encoder
from encoders.source_text import split_source
from recipes.judging_args import PROGRAMS, JudgingArguments, TaskName
from vision_core.errors import UserError
from vision_core.images.ranges import range_notes
from vision_core.images.splits import Splits
from vision_core.printable import printable
from vision_core.processes.distributed import broadcast_text, is_main_process
from vision_core.runs.checkpoints import write_text_atomically
from vision_core.runs.work_folder import PARTIAL, WorkFolder, config_of

# Options that decide about the features beside the encoder and the images; the rest of a result's
# key is in `KeptResults`.
OF_THE_FEATURES = ("dense_image_size", "preprocess", "bf16", "seed", "batch_size", "max_bad_fraction")
BAD_SAMPLES = "bad_samples.jsonl"  # as in a folder of pretraining
PARADIGMS = {
    "dinov2": "self-distillation", "dinov2_with_registers": "self-distillation", "dinov3_vit": "self-distillation", "dinov3_convnext": "self-distillation",
    "siglip_vision_model": "image-text", "siglip2_vision_model": "image-text", "clip_vision_model": "image-text", "metaclip_2_vision_model": "image-text",
    "vit_mae": "reconstruction", "ijepa": "reconstruction", "aimv2_vision_model": "reconstruction", "internvl_vision": "image-text",
    "radio": "distillation", "tipsv2_vision_model": "image-text",
}  # fmt: skip


@dataclass(frozen=True)
class Output:
    """Where an evaluation writes. work: the folder, on the main process alone. path, partial: the
    same on every process."""

    work: WorkFolder | None
    path: Path

    @property
    def partial(self) -> Path:
        return self.path / PARTIAL


def open_output(args: JudgingArguments, name: str) -> Output:
    """The folder of this evaluation: a new one, or with `--resume_from_checkpoint auto` that of an
    earlier start."""
    work = None
    if is_main_process():
        work = WorkFolder.open(
            args.output_dir, name, config_of(args), args.resume_from_checkpoint, PROGRAMS[name]
        )
    return Output(work, Path(broadcast_text(str(work.path) if work else "")))


def load(source: str, args: JudgingArguments, device: torch.device) -> Encoder:
    """The frozen encoder on its device. A `?preprocess=` of its own goes before that of the
    program."""
    given = split_source(source)[1]
    encoder = load_encoder(
        source,
        image_size=args.image_size,
        dtype=torch.bfloat16 if args.bf16 else torch.float32,
        preprocess=None if "preprocess" in given else args.preprocess,
        position_offset=args.position_offset,
        seed=args.seed,
    )
    return encoder.to(device)


def notes_on(splits: Splits, encoder: Encoder) -> list[str]:
    """What is odd about the range of the training images' values, for an encoder that normalises by
    its own mean and std.

    The main process alone looks, as it alone prints.
    """
    if not is_main_process():
        return []
    channels = encoder.num_channels
    mean, std = (
        values * channels if len(values) == 1 else values
        for values in (encoder.transform.mean, encoder.transform.std)
    )
    return [f"note: {note}" for note in range_notes(splits.train, channels, mean, std, is_trained=True)]


def frozen_features(encoder: Encoder, splits: Splits, args: JudgingArguments) -> FrozenFeatures:
    """The encoder on the data."""
    return FrozenFeatures(
        encoder,
        splits,
        cache_folder(args.cache_dir),
        limits=(args.max_train_samples, args.max_test_samples),
        dense_size=tuple(args.dense_image_size) if args.dense_image_size else None,
        seed=args.seed,
        batch_size=args.batch_size,
        num_workers=args.dataloader_num_workers,
        progress=True,
        max_bad_fraction=args.max_bad_fraction,
    )


def join_processes() -> torch.device:
    """Start the process group under torchrun or accelerate; this process's device.

    What processes tell each other here are Python objects, so gloo does on GPUs too. The others
    wait for as long as the main one works at a task.
    """
    device = (
        torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        if torch.cuda.is_available()
        else torch.device("cpu")
    )
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not dist.is_initialized():
        dist.init_process_group("gloo", timeout=timedelta(days=7))
    return device


def cache_folder(given: str | None) -> Path:
    """Where features are kept: the folder that was named, or one in the user's cache."""
    return (
        Path(given)
        if given
        else Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
        / "vision-encoder-fusion"
        / "features"
    )


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
    frozen: FrozenFeatures,
    tasks: Sequence[TaskName],
    args: JudgingArguments,
    dataset: str,
    output: Output,
    say: Callable[[str], None],
) -> dict[TaskName, TaskResult]:
    """The results by task, on the main process; the others help to extract features and get none.

    A result that an earlier start has kept is taken over. What cannot be read is named in
    `bad_samples.jsonl` of the folder, also where it is so much that the program stops.
    """
    try:
        kept, results = None, {}
        if is_main_process():
            kept = KeptResults(
                output.partial, frozen, {name: getattr(args, name) for name in OF_THE_FEATURES}
            )
            results = kept_results(kept, tasks, args)
        missing = json.loads(broadcast_text(json.dumps([name for name in tasks if name not in results])))
        for name in missing:
            TASKS[name].prepare(frozen)
        if kept is None:
            return {}
        for name in tasks:
            again = ", kept from an earlier start" if name in results else ""
            if not again:
                settings = settings_of(name, args)
                results[name] = TASKS[name].run(frozen, **settings)
                kept.keep(
                    name,
                    settings | _contents(settings),
                    plain(result_as_json(results[name])),
                    results[name].picture,
                )
            figures = ", ".join(f"{metric} {shown(value)}" for metric, value in results[name].metrics.items())
            say(f"  {name:<22}{figures}; {results[name].images_in_words}{again}")
        say(f"{dataset}: {frozen.used_in_words}")
        return {name: results[name] for name in tasks}
    finally:
        if is_main_process():
            name_unreadable(output.path, dataset, frozen)


def kept_results(
    kept: KeptResults, tasks: Sequence[TaskName], args: JudgingArguments
) -> dict[TaskName, TaskResult]:
    """Those of the tasks that an earlier start has done."""
    found = {}
    for name in tasks:
        settings = settings_of(name, args)
        found[name] = kept.take(name, settings | _contents(settings))
    return {name: result for name, result in found.items() if result is not None}


def settings_of(name: TaskName, args: JudgingArguments) -> dict[str, Any]:
    """The options that a task takes."""
    return {key: getattr(args, key) for key in TASKS[name].settings}


def _contents(settings: Mapping[str, Any]) -> dict[str, str]:
    """Hashes of the files that settings name."""
    path = settings.get("ground_truth")
    if path is None or not Path(path).is_file():  # the task itself says so
        return {}
    return {"content of ground_truth": hashlib.sha256(Path(path).read_bytes()).hexdigest()}


def name_unreadable(folder: Path, dataset: str, frozen: FrozenFeatures) -> None:
    """One line in `bad_samples.jsonl` for each image that could not be read, once for all
    encoders."""
    path = folder / BAD_SAMPLES
    named = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    records = [
        {"id": name, "reason": reason, "dataset": dataset, "part": part}
        for part, bad in frozen.bad.items()
        for name, reason in bad.items()
    ]
    lines = list(dict.fromkeys([*named, *map(json.dumps, records)]))
    if len(lines) > len(named):
        write_text_atomically(path, "\n".join(lines) + "\n")


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
    vector = (
        "mean of the patches"
        if encoder.pooled_width is None
        else f"published image vector of {encoder.pooled_width}"
    )
    layers = "1 layer" if encoder.num_layers == 1 else f"{encoder.num_layers} layers"
    height, width = transform.size
    return (
        f"{height} x {width} pixels, {cut}, {transform.interpolation} interpolation; {vector}; "
        f"{layers} of {encoder.width} of stride {encoder.stride}"
    )


def shown(value: float) -> str:
    """A figure with three significant digits below 10, one decimal above."""
    return f"{value:.3g}" if abs(value) < 10 else f"{value:.1f}"


def write_json(path: Path, report: Any) -> None:
    """Dataclasses, numbers and texts as JSON; pictures are left out."""
    path.write_text(json.dumps(report, indent=1, default=_plain) + "\n", encoding="utf-8")


def plain(report: Any) -> Any:
    """What JSON gives back of dataclasses, numbers and texts."""
    return json.loads(json.dumps(report, default=_plain))


def result_as_json(result: TaskResult) -> dict[str, Any]:
    """Everything but the picture."""
    return {field.name: getattr(result, field.name) for field in fields(result) if field.name != "picture"}


def markdown_table(rows: Sequence[Mapping[str, str]]) -> str:
    """Rows under the columns of the first appearance; an empty cell where a row lacks one."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    lines = [columns, ["---"] * len(columns), *([row.get(name, "") for name in columns] for row in rows)]
    return "\n".join("| " + " | ".join(map(printable, line)) + " |" for line in lines)


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return asdict(value)
    if isinstance(value, torch.Tensor):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is no JSON")
