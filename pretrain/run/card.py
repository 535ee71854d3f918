"""The model card of a pretraining run."""

from collections.abc import Mapping
from pathlib import Path

from torch import nn

from encoders.evaluation.knn_benchmark import KnnBenchmark
from pretrain.run.args import PROGRAM, DINOv2Arguments, image_size
from pretrain.run.feeding import feeding
from vision_core.images.source import ImageSource, ImageStream
from vision_core.model_card import LOADING_SNIPPET, write_model_card
from vision_core.printable import in_code
from vision_core.processes.distributed import world_size
from vision_core.runs.run_facts import batch_text, data_licence, made_with, millions, run_again

# What tells two recipes apart; config.yaml beside the card has every option.
SHOWN_SETTINGS = (
    "backbone", "patch_size", "num_register_tokens", "num_local_crops", "blur", "mask_count",
    "num_prototypes", "separate_ibot_head", "centering", "ibot_weighting", "koleo_precision", "train_weight_g", "learning_rate",
    "warmup_steps", "ema_momentum", "drop_path_rate", "bf16", "fp16", "seed",
)  # fmt: skip
UNKNOWN = "It has seen no other images than these; what it makes of others is not known, and nothing was done about biases in the data."


def write_card(
    folder: Path,
    args: DINOv2Arguments,
    *,
    step: int,
    source: ImageSource | ImageStream,
    backbone: nn.Module,
    references: Mapping[str, float],
    accuracies: Mapping[str, float],
    benchmark: KnnBenchmark | None,
    in_own_scale: bool = False,
) -> None:
    """README.md of the run's folder after `step` steps.

    references, accuracies: k-NN in percent, of what the run has to beat and of the model.
    in_own_scale: images were floats, no pictures of 8 bits.
    """
    num_images = len(source) if isinstance(source, ImageSource) else None
    results = {**references, **{f"this model, {name}": value for name, value in accuracies.items()}}
    write_model_card(
        folder / "README.md",
        title=f"{args.name}: a DINOv2 vision encoder",
        summary=f"Pretrained without labels by DINOv2 self-distillation (DINO, iBOT, KoLeo) for {step} of {args.max_steps} steps.",
        training_command=run_again(PROGRAM, folder, "accelerate launch"),
        data=f"{source.description}. Source: {in_code(args.dataset)}.\n\n{data_licence([args.dataset])}",
        results=[{"features": name, "k-NN top-1, %": f"{value:.1f}"} for name, value in results.items()],
        settings=facts(args, step, backbone) | {name: getattr(args, name) for name in SHOWN_SETTINGS},
        note=" ".join(
            [seen(args, step, num_images), *judged(args, references, accuracies, benchmark), UNKNOWN]
        ),
        tags=("dinov2", "self-supervised"),
        loading=feeding(LOADING_SNIPPET, args.num_channels, source.pixel_options, in_own_scale),
    )


def facts(args: DINOv2Arguments, step: int, backbone: nn.Module) -> dict[str, str]:
    """What a reader compares first: size, images, batch, steps, and with what it was made."""
    sizes = {
        "global crops": args.global_crop_size,
        "local crops": args.local_crop_size if args.num_local_crops else None,
    }
    sizes["evaluated at"] = args.eval_image_size or args.global_crop_size
    shown = [f"{name} {' x '.join(map(str, image_size(size)))}" for name, size in sizes.items() if size]
    return {
        "parameters": millions([backbone]),
        "image sizes": ", ".join(shown),
        "images": batch_text(args.per_device_train_batch_size, args.gradient_accumulation_steps),
        "steps": f"{step:,} of {args.max_steps:,}",
        **made_with(),
    }


def seen(args: DINOv2Arguments, step: int, num_images: int | None) -> str:
    """How much the model has seen."""
    drawn = step * args.per_device_train_batch_size * args.gradient_accumulation_steps * world_size()
    passes = f", {drawn / num_images:.1f} passes over {num_images:,} images" if num_images else ""
    return f"It was trained for {step:,} steps and has seen {drawn:,} images{passes}."


def judged(
    args: DINOv2Arguments,
    references: Mapping[str, float],
    accuracies: Mapping[str, float],
    benchmark: KnnBenchmark | None,
) -> list[str]:
    """What was measured, and where the model is below what it had to beat."""
    if benchmark is None or not accuracies:
        return ["Nothing was measured: whether its features are good for anything is not known."]
    best = max(accuracies.values())
    not_above = [
        f"{name.replace('_', ' ')} ({value:.1f} %)" for name, value in references.items() if value >= best
    ]
    lines = [
        f"The numbers are k-NN on frozen features of {in_code(args.eval_dataset)} alone: {benchmark.description}."
    ]
    if not_above:
        lines.append(
            f"Its k-NN of {best:.1f} % is not above {' and '.join(not_above)}: the model is worth no more than those there."
        )
    return lines
