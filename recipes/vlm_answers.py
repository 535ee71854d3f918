"""Answers of a vision-language model to a task, with its images, without them, and with those of other questions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor
from tqdm import tqdm

from fusion import FusionProcessor, FusionVlmForConditionalGeneration
from fusion.processing_fusion import IMAGE_TOKEN
from recipes.vlm_grading import cider_d
from recipes.vlm_tasks import Question, Task
from vision_core.distributed import gather_objects, is_main_process, rank, world_size
from vision_core.randomness import numpy_generator

Shown = Literal["images", "blind", "shuffled"]


@dataclass(frozen=True)
class Score:
    """score: the benchmark's figure, in percent (CIDEr-D: as it is). error: its standard error. groups: name -> (score, questions).

    answers, points: of every question.
    """

    score: float
    error: float
    groups: dict[str, tuple[float, int]]
    answers: list[str] = field(repr=False)
    points: list[float] = field(repr=False)


def answer_and_score(
    model: FusionVlmForConditionalGeneration, processor: FusionProcessor, task: Task, shown: Shown = "images", batch_size: int = 16
) -> Score:
    """Ask all questions, each process its share, and grade them.

    shown: `images`; `blind`, no image at all; `shuffled`, the images of another question, as far away in the list for each.
    """
    indices = range(rank(), len(task.questions), world_size())
    mine: list[tuple[int, str]] = []
    bar = tqdm(range(0, len(indices), batch_size), desc=f"{task.name}, {shown}", disable=not is_main_process(), leave=False)
    for start in bar:
        chosen = indices[start : start + batch_size]
        images = [[] if shown == "blind" else task.questions[_whose(index, len(task.questions), shown)].images() for index in chosen]
        texts = [task.prompted(task.questions[index]) for index in chosen]
        mine += zip(chosen, answers(model, processor, texts, images, task.max_new_tokens), strict=True)
    everything = sorted(pair for each in gather_objects(mine) for pair in each)
    return graded(task, [text for _, text in everything])


def graded(task: Task, given: Sequence[str]) -> Score:
    """The score of answers, one for each question."""
    if task.grade is None:
        points = cider_d(given, [question.expected for question in task.questions])
        factor = 1.0
    else:
        grade = task.grade
        points = [float(grade(text, each.expected, each.choices)) for text, each in zip(given, task.questions, strict=True)]
        factor = 100.0
    bundles: dict[tuple[str, str], list[float]] = {}
    for number, (question, point) in enumerate(zip(task.questions, points, strict=True)):
        bundles.setdefault((question.group, question.bundle or f"row {number}"), []).append(point)
    of_group: dict[str, list[float]] = {}
    for (group, _), each in bundles.items():
        of_group.setdefault(group, []).append(min(each))
    groups = {group: (factor * sum(each) / len(each), len(each)) for group, each in sorted(of_group.items())}
    everything = [value for each in of_group.values() for value in each]
    mean = sum(everything) / len(everything)
    spread = sum((value - mean) ** 2 for value in everything) / len(everything)
    score = task.summary({name: value for name, (value, _) in groups.items()}) if task.summary else factor * mean
    return Score(score, factor * math.sqrt(spread / len(everything)), groups, list(given), points)


def chance(task: Task) -> float | None:
    """Of a guess among the choices, in percent; None where a question has none."""
    if not all(question.choices for question in task.questions):
        return None
    bundles: dict[tuple[str, str], float] = {}
    for number, question in enumerate(task.questions):
        key = (question.group, question.bundle or f"row {number}")
        bundles[key] = bundles.get(key, 1.0) / len(question.choices)
    return 100 * sum(bundles.values()) / len(bundles)


@torch.inference_mode()
def answers(
    model: FusionVlmForConditionalGeneration,
    processor: FusionProcessor,
    texts: Sequence[str],
    images: Sequence[Sequence[Tensor]],
    max_new_tokens: int,
) -> list[str]:
    """Greedy answers to questions, each with its images `[3, H, W]` in front of it."""
    contents = [f"{IMAGE_TOKEN}\n" * len(shown) + text for text, shown in zip(texts, images, strict=True)]
    prompts = [processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True) for content in contents]
    flat = [image for shown in images for image in shown]
    inputs = processor(text=prompts, images=flat or None, padding=True, padding_side="left", add_special_tokens=False, return_tensors="pt")
    on_device = {
        name: [each.to(model.device) for each in value] if isinstance(value, list) else value.to(model.device)
        for name, value in inputs.items()
    }
    new = model.generate(**on_device, max_new_tokens=max_new_tokens, do_sample=False)[:, inputs["input_ids"].shape[1] :]
    return [text.strip() for text in processor.batch_decode(new, skip_special_tokens=True)]


def _whose(index: int, count: int, shown: Shown) -> int:
    """The question whose images are shown with question `index`."""
    if shown == "images" or count == 1:
        return index
    return (index + 1 + int(numpy_generator("shuffled images", count).integers(count - 1))) % count


def examples(task: Task, score: Score, count: int) -> list[tuple[Question, str, float]]:
    """Questions spread over the task, each with its answer and points."""
    step = max(len(task.questions) // count, 1)
    return [(task.questions[at], score.answers[at], score.points[at]) for at in range(0, len(task.questions), step)][:count]
