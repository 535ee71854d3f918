"""Writes the model card of a DINOv2 run."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from encoders.evaluation.knn_benchmark import KnnBenchmark
from pretrain.run.feeding import feeding
from vision_core.images.source import ImageSource, ImageStream
from vision_core.model_card import LOADING_SNIPPET, write_model_card
from vision_core.printable import in_code
from vision_core.processes.distributed import world_size
from vision_core.runs.run_facts import batch_text, data_licence, made_with, millions, run_again

UNKNOWN = (
    "It has seen no other images than these; what it makes of others is not known, and nothing was done "
    "about biases in the data."
)


@dataclass(frozen=True)
class CardFacts:
    """What the options of a run say on its card.

    image_sizes: of crops and evaluation, in words. batch_size: images per process and micro-batch.
    settings: options that tell two recipes apart.
    """

    program: str
    name: str
    max_steps: int
    dataset: str
    eval_dataset: str | None
    num_channels: int
    image_sizes: str
    batch_size: int
    micro_batches: int
    settings: Mapping[str, Any]


def write_dinov2_card(
    folder: Path,
    facts: CardFacts,
    *,
    step: int,
    source: ImageSource | ImageStream,
    backbone: nn.Module,
    references: Mapping[str, float],
    accuracies: Mapping[str, float],
    benchmark: KnnBenchmark | None,
    in_own_scale: bool = False,
) -> None:
    """Write README.md of the run's folder after `step` steps.

    references, accuracies: k-NN in percent, of what the run has to beat and of the model.
    in_own_scale: images were floats, not pictures of 8 bits.
    """
    num_images = len(source) if isinstance(source, ImageSource) else None
    judged_on = benchmark.description if benchmark else ""
    notes = [seen_text(facts, step, num_images)]
    notes += judgement(facts.eval_dataset, judged_on, references, accuracies)
    notes.append(UNKNOWN)
    write_model_card(
        folder / "README.md",
        title=f"{facts.name}: a DINOv2 vision encoder",
        summary="Pretrained without labels by DINOv2 self-distillation (DINO, iBOT, KoLeo) for "
        f"{step} of {facts.max_steps} steps.",
        training_command=run_again(facts.program, folder, "accelerate launch"),
        data=f"{source.description}. Source: {in_code(facts.dataset)}.\n\n{data_licence([facts.dataset])}",
        results=result_rows(references, accuracies),
        settings=first_facts(facts, step, backbone) | dict(facts.settings),
        note=" ".join(notes),
        tags=("dinov2", "self-supervised"),
        loading=feeding(LOADING_SNIPPET, facts.num_channels, source.pixel_options, in_own_scale),
    )


def result_rows(references: Mapping[str, float], accuracies: Mapping[str, float]) -> list[dict[str, str]]:
    """The rows of the table of k-NN accuracies: what the run has to beat, then the model."""
    results = dict(references)
    for name, value in accuracies.items():
        results[f"this model, {name}"] = value
    return [{"features": name, "k-NN top-1, %": f"{value:.1f}"} for name, value in results.items()]


def first_facts(facts: CardFacts, step: int, backbone: nn.Module) -> dict[str, str]:
    """What a reader compares first: size, images, batch, steps, and with what it was made."""
    return {
        "parameters": millions([backbone]),
        "image sizes": facts.image_sizes,
        "images": batch_text(facts.batch_size, facts.micro_batches),
        "steps": f"{step:,} of {facts.max_steps:,}",
        **made_with(),
    }


def seen_text(facts: CardFacts, step: int, num_images: int | None) -> str:
    """How much the model has seen."""
    drawn = step * facts.batch_size * facts.micro_batches * world_size()
    passes = f", {drawn / num_images:.1f} passes over {num_images:,} images" if num_images else ""
    return f"It was trained for {step:,} steps and has seen {drawn:,} images{passes}."


def judgement(
    eval_dataset: str | None,
    judged_on: str,
    references: Mapping[str, float],
    accuracies: Mapping[str, float],
) -> list[str]:
    """What was measured, and where the model is below what it had to beat.

    judged_on: the benchmark in words, "" where the run is not judged.
    """
    if not judged_on or not accuracies:
        return ["Nothing was measured: whether its features are good for anything is not known."]
    best = max(accuracies.values())
    sentences = [f"The numbers are k-NN on frozen features of {in_code(eval_dataset)} alone: {judged_on}."]
    not_beaten = {name: value for name, value in references.items() if value >= best}
    if not_beaten:
        sentences.append(_not_above_text(best, not_beaten))
    return sentences


def _not_above_text(best: float, not_beaten: Mapping[str, float]) -> str:
    words = [f"{name.replace('_', ' ')} ({value:.1f} %)" for name, value in not_beaten.items()]
    return (
        f"Its k-NN of {best:.1f} % is not above {' and '.join(words)}: "
        "the model is worth no more than those there."
    )
