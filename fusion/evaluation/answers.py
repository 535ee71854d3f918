"""Answers of a vision-language model to a task, with its images, without them, and with those of
other questions."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from fusion import FusionProcessor, FusionVlmForConditionalGeneration
from fusion.chat_turns import answer_in, render_prompt
from fusion.conversations.conversation import IMAGE, Conversation, Message
from fusion.conversations.mixtures import ConversationCollator, image_inputs
from fusion.conversations.tokens import chat_messages, tokenise
from fusion.evaluation.grading import cider_d
from fusion.evaluation.kept_answers import KeptAnswers, Row
from fusion.evaluation.tasks import Question, Task
from fusion.labels import LABEL_IGNORED
from vision_core.printable import printable
from vision_core.processes.distributed import gather_objects, is_main_process, rank, world_size
from vision_core.randomness import numpy_generator

Shown = Literal["images", "blind", "shuffled"]


@dataclass(frozen=True)
class Score:
    """score: the benchmark's figure, in percent (CIDEr-D: as it is). error: its standard error.
    groups: name -> (score, questions).

    loss: of the expected answers, per token; it sees differences that right and wrong do not show.
    answers, points: of every question.
    figures: what the benchmark prints beside its score, in percent, by name.
    """

    score: float
    error: float
    loss: float
    groups: dict[str, tuple[float, int]]
    answers: list[str] = field(repr=False)
    points: list[float] = field(repr=False)
    figures: dict[str, float] = field(default_factory=dict)


def answer_and_score(
    model: FusionVlmForConditionalGeneration,
    processor: FusionProcessor,
    task: Task,
    shown: Shown = "images",
    batch_size: int = 16,
    thought_tokens: int = 0,
    kept: KeptAnswers | None = None,
) -> Score:
    """Ask all questions, each process its share of the batches, and grade them.

    A batch is of consecutive questions, whichever process asks it and whatever was answered before:
    the width of a batch decides how its numbers round, and so a run that was killed, or has other
    processes, gives the same bits. shown: `images`; `blind`, no image at all; `shuffled`, the
    images of another question, as far away in the list for each. thought_tokens: how many tokens of
    thoughts may stand in front of an answer; 0 asks for answers without thoughts. kept: answers of
    an earlier start, to which those of this one are added.
    """
    starts = range(rank() * batch_size, len(task.questions), world_size() * batch_size)
    mine: list[Row] = []
    for start in tqdm(
        starts, desc=printable(f"{task.name}, {shown}"), disable=not is_main_process(), leave=False
    ):
        numbers = range(len(task.questions))[start : start + batch_size]
        asked = [asked_question(task, number, shown) for number in numbers]
        rows = kept.rows(shown, numbers, asked) if kept is not None else None
        if rows is None:
            rows = answers_to(model, processor, task, numbers, asked, thought_tokens)
            if kept is not None:
                kept.add(shown, rows, asked)
        mine += rows
    everything = sorted(row for each in gather_objects(mine) for row in each)
    loss = sum(row[2] for row in everything) / sum(row[3] for row in everything)
    return graded(task, [row[1] for row in everything], loss)


def answers_to(
    model: FusionVlmForConditionalGeneration,
    processor: FusionProcessor,
    task: Task,
    numbers: Sequence[int],
    asked: Sequence[Conversation],
    thought_tokens: int,
) -> list[Row]:
    """One batch: the questions of these numbers, as they are asked."""
    given = replies(
        model,
        processor,
        [chat_messages(each.messages) for each in asked],
        [image for each in asked for image in each.images],
        thinking=thought_tokens > 0,
        max_new_tokens=task.max_new_tokens + thought_tokens,
        do_sample=False,
    )
    expected = [task.questions[number].expected[0] for number in numbers]
    return list(zip(numbers, given, *expected_losses(model, processor, asked, expected), strict=True))


def asked_question(task: Task, index: int, shown: Shown) -> Conversation:
    """Question `index` as the model is asked it: the turns up to the graded answer, with its
    images, without any, or with those of another question."""
    question = task.questions[index]
    images = question.images()
    turns = question.turns or (Message("user", f"{IMAGE}\n" * len(images) + task.prompted(question)),)
    if shown == "blind":
        turns = tuple(replace(turn, text=without_places(turn.text)) for turn in turns)
        images = []
    if shown == "shuffled" and images:
        others = task.questions[_another(task, index)].images() or images
        images = [others[number % len(others)] for number in range(len(images))]
    return Conversation(question.where, turns, tuple(images))


def without_places(text: str) -> str:
    """The text without its `<image>`s and the line breaks behind them."""
    return text.replace(f"{IMAGE}\n", "").replace(IMAGE, "").strip()


def graded(task: Task, given: Sequence[str], loss: float = math.nan) -> Score:
    """The score of answers, one for each question."""
    if task.grade is None:
        points = cider_d(given, [question.expected for question in task.questions])
        factor = 1.0
    else:
        grade = task.grade
        points = [
            float(grade(text, each.expected, each.choices))
            for text, each in zip(given, task.questions, strict=True)
        ]
        factor = 100.0
    of_group = by_group(task, points, min)
    groups = {name: (factor * sum(each) / len(each), len(each)) for name, each in sorted(of_group.items())}
    score, error = figure(task, of_group)
    beside = (
        task.figures(given, [question.expected[0] for question in task.questions]) if task.figures else {}
    )
    return Score(factor * score, factor * error, loss, groups, list(given), points, beside)


def chance(task: Task) -> float | None:
    """Of a guess among the choices, in percent; None where a question has none."""
    shown = [sum(map(bool, question.choices)) for question in task.questions]
    if not all(shown):
        return None
    return 100 * figure(task, by_group(task, [1 / count for count in shown], math.prod))[0]


def by_group(
    task: Task, values: Sequence[float], join: Callable[[list[float]], float]
) -> dict[str, list[float]]:
    """The values of the questions, joined over each bundle, by group."""
    bundles: dict[tuple[str, str], list[float]] = {}
    for number, (question, value) in enumerate(zip(task.questions, values, strict=True)):
        bundles.setdefault((question.group, question.bundle or f"row {number}"), []).append(value)
    of_group: dict[str, list[float]] = {}
    for (group, _), each in bundles.items():
        of_group.setdefault(group, []).append(join(each))
    return of_group


def figure(task: Task, of_group: Mapping[str, list[float]]) -> tuple[float, float]:
    """The benchmark's own mean of values by group, and its standard error."""
    everything = [value for each in of_group.values() for value in each]
    parts = (
        [(1.0, everything)]
        if task.weights is None
        else [(weight, of_group[name]) for name, weight in task.weights(of_group).items()]
    )
    mean = sum(weight * statistics.fmean(each) for weight, each in parts)
    return mean, math.sqrt(sum(weight**2 * statistics.pvariance(each) / len(each) for weight, each in parts))


@torch.inference_mode()
def replies(
    model: FusionVlmForConditionalGeneration,
    processor: FusionProcessor,
    conversations: Sequence[Sequence[Mapping[str, Any]]],
    images: Sequence[Tensor],
    thinking: bool = False,
    **generation: Any,
) -> list[str]:
    """What the model says next in each conversation, without its thoughts.

    conversations: turns of `role` and `content`, which has one `<image>` where each image stands.
    images: `[3, H, W]`, of all conversations in the order of their places. thinking: whether it is
    asked to think first. generation: options of `generate`.
    """
    prompts = [render_prompt(processor, turns, thinking) for turns in conversations]
    inputs = processor(
        text=prompts, images=list(images) or None, padding=True, padding_side="left", return_tensors="pt"
    )
    new = model.generate(**_on_device(inputs, model.device), **generation)[:, inputs["input_ids"].shape[1] :]
    return [
        answer_in(processor, text, thinking)
        for text in processor.batch_decode(new, skip_special_tokens=False)
    ]


@torch.inference_mode()
def expected_losses(
    model: FusionVlmForConditionalGeneration,
    processor: FusionProcessor,
    asked: Sequence[Conversation],
    expected: Sequence[str],
) -> tuple[list[float], list[int]]:
    """Of each expected answer, the sum of -log p over its tokens and that of its end, and their
    number."""
    items = []
    for question, answer in zip(asked, expected, strict=True):
        earlier = tuple(replace(turn, learnt=False) for turn in question.messages)
        whole = replace(question, messages=(*earlier, Message("assistant", answer)))
        tokens = tokenise(whole, processor, 2**20)
        item = {"input_ids": tokens.input_ids, "labels": tokens.labels}
        items.append(item | (image_inputs(question.images, processor, None) if question.images else {}))
    batch = ConversationCollator(processor)(items)
    labels = batch.pop("labels")[:, 1:].to(model.device)
    logits = model(**_on_device(batch, model.device)).logits[:, :-1].float()
    losses = (
        F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=LABEL_IGNORED, reduction="none")
        .view(labels.shape)
        .sum(1)
    )
    return losses.tolist(), (labels != LABEL_IGNORED).sum(1).tolist()


def _on_device(inputs: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    return {
        name: [each.to(device) for each in value] if isinstance(value, list) else value.to(device)
        for name, value in inputs.items()
    }


def _another(task: Task, index: int) -> int:
    """The question whose images are shown with question `index` in place of its own."""
    count = len(task.questions)
    if count == 1:
        return index
    return (index + 1 + int(numpy_generator("shuffled images", count).integers(count - 1))) % count


def examples(task: Task, score: Score, count: int) -> list[tuple[Question, str, float]]:
    """Questions spread over the task, each with its answer and points."""
    step = max(len(task.questions) // count, 1)
    return [
        (task.questions[at], score.answers[at], score.points[at])
        for at in range(0, len(task.questions), step)
    ][:count]
