"""Asks a vision-language model the questions of a task and scores its answers.

The same questions can be asked with their images, without any, and with those of other questions.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from fusion import FusionProcessor, FusionVlmForConditionalGeneration
from fusion.chat_turns import answer_in, render_prompt
from fusion.conversations.batches import ConversationCollator, training_item
from fusion.conversations.conversation import IMAGE, Conversation, Message
from fusion.conversations.tokens import chat_messages
from fusion.evaluation.grading import cider_d
from fusion.evaluation.kept_answers import GivenAnswer, KeptAnswers
from fusion.evaluation.tasks import BenchmarkQuestion, BenchmarkTask
from fusion.labels import LABEL_IGNORED
from vision_core.printable import printable
from vision_core.processes.distributed import gather_objects, is_main_process, rank, world_size
from vision_core.randomness import numpy_generator

ImageCondition = Literal["images", "blind", "shuffled"]
NO_LIMIT = 2**20  # tokens of a question and its expected answer


@dataclass(frozen=True)
class Score:
    """The score of a model on a task.

    score: the benchmark's own figure, in percent (CIDEr-D as it is).
    error: the standard error of `score`.
    loss: the mean loss of the expected answers, per token; it shows differences that right and wrong
        do not show.
    groups: name -> (score, number of questions).
    answers, points: of every question.
    figures: what the benchmark prints beside its score, by name and in percent.
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
    task: BenchmarkTask,
    condition: ImageCondition = "images",
    batch_size: int = 16,
    thought_tokens: int = 0,
    kept: KeptAnswers | None = None,
) -> Score:
    """Ask all questions, each process its share of the batches, and grade the answers.

    condition: `images`; `blind`, without any image; `shuffled`, with the images of another question,
        which is equally far away in the list for each.
    thought_tokens: how many tokens of thoughts may stand in front of an answer; 0 asks for answers
        without thoughts.
    kept: the answers of an earlier start, to which those of this one are added.
    """
    own: list[GivenAnswer] = []
    for numbers in _own_batches(task, condition, batch_size):
        asked = [question_as_asked(task, number, condition) for number in numbers]
        answers = kept.find(condition, numbers, asked) if kept is not None else None
        if answers is None:
            answers = answer_batch(model, processor, task, numbers, asked, thought_tokens)
            if kept is not None:
                kept.add(condition, answers, asked)
        own += answers
    everything: list[GivenAnswer] = []
    for answers in gather_objects(own):
        everything += answers
    everything.sort()
    loss = sum(answer.loss for answer in everything) / sum(answer.tokens for answer in everything)
    return score_answers(task, [answer.reply for answer in everything], loss)


def _own_batches(task: BenchmarkTask, condition: ImageCondition, batch_size: int) -> Iterable[range]:
    """The numbers of the questions of each batch that this process asks, behind a progress bar.

    A batch holds consecutive questions, whichever process asks it and whatever was answered before.
    The width of a batch decides how its numbers round, so a run that was killed, or that has another
    number of processes, gives the same bits.
    """
    count = len(task.questions)
    starts = range(rank() * batch_size, count, world_size() * batch_size)
    batches = [range(start, min(start + batch_size, count)) for start in starts]
    title = printable(f"{task.name}, {condition}")
    return tqdm(batches, desc=title, disable=not is_main_process(), leave=False)


def answer_batch(
    model: FusionVlmForConditionalGeneration,
    processor: FusionProcessor,
    task: BenchmarkTask,
    numbers: Sequence[int],
    asked: Sequence[Conversation],
    thought_tokens: int,
) -> list[GivenAnswer]:
    """Answer one batch: the questions of these numbers, in the form in which they are asked."""
    images: list[Tensor] = []
    for conversation in asked:
        images += conversation.images
    given = replies(
        model,
        processor,
        [chat_messages(conversation.messages) for conversation in asked],
        images,
        thinking=thought_tokens > 0,
        max_new_tokens=task.max_new_tokens + thought_tokens,
        do_sample=False,
    )
    expected = [task.questions[number].expected[0] for number in numbers]
    losses, token_counts = expected_losses(model, processor, asked, expected)
    return list(map(GivenAnswer, numbers, given, losses, token_counts))


def question_as_asked(task: BenchmarkTask, index: int, condition: ImageCondition) -> Conversation:
    """Question `index` in the form in which the model is asked it: the turns up to the graded answer,
    with the images that `condition` chooses."""
    question = task.questions[index]
    images = question.images()
    turns = question.turns
    if not turns:
        turns = (Message("user", f"{IMAGE}\n" * len(images) + task.prompt_for(question)),)
    if condition == "blind":
        turns = tuple(replace(turn, text=remove_image_places(turn.text)) for turn in turns)
        images = []
    if condition == "shuffled" and images:
        others = task.questions[_number_of_another_question(task, index)].images() or images
        images = [others[place % len(others)] for place in range(len(images))]
    return Conversation(question.where, turns, tuple(images))


def _number_of_another_question(task: BenchmarkTask, index: int) -> int:
    """The question whose images are shown with question `index` in place of its own."""
    count = len(task.questions)
    if count == 1:
        return index
    return (index + 1 + int(numpy_generator("shuffled images", count).integers(count - 1))) % count


def remove_image_places(text: str) -> str:
    """The text without its `<image>`s and the line breaks behind them."""
    return text.replace(f"{IMAGE}\n", "").replace(IMAGE, "").strip()


def score_answers(task: BenchmarkTask, given: Sequence[str], loss: float = math.nan) -> Score:
    """The score of answers, one for each question."""
    points = grade_answers(task, given)
    factor = 1.0 if task.grade is None else 100.0
    points_of_group = collect_by_group(task, points, min)
    groups = {}
    for name, values in sorted(points_of_group.items()):
        groups[name] = (factor * sum(values) / len(values), len(values))
    score, error = mean_and_error(task, points_of_group)
    figures: dict[str, float] = {}
    if task.figures is not None:
        figures = task.figures(given, [question.expected[0] for question in task.questions])
    return Score(
        score=factor * score,
        error=factor * error,
        loss=loss,
        groups=groups,
        answers=list(given),
        points=points,
        figures=figures,
    )


def grade_answers(task: BenchmarkTask, given: Sequence[str]) -> list[float]:
    """The points of each answer."""
    if task.grade is None:
        return cider_d(given, [question.expected for question in task.questions])
    points = []
    for answer, question in zip(given, task.questions, strict=True):
        points.append(float(task.grade(answer, question.expected, question.choices)))
    return points


def chance(task: BenchmarkTask) -> float | None:
    """The score of a guess among the choices, in percent; None where a question has no choices."""
    points = []
    for question in task.questions:
        choices = list(filter(None, question.choices))
        if not choices:
            return None
        points.append(1 / len(choices))
    return 100 * mean_and_error(task, collect_by_group(task, points, math.prod))[0]


def collect_by_group(
    task: BenchmarkTask, values: Sequence[float], join: Callable[[list[float]], float]
) -> dict[str, list[float]]:
    """The values of the questions by group, those of each bundle joined into one."""
    values_of_bundle: dict[tuple[str, str], list[float]] = {}
    for number, (question, value) in enumerate(zip(task.questions, values, strict=True)):
        key = (question.group, question.bundle or f"row {number}")
        values_of_bundle.setdefault(key, []).append(value)
    values_of_group: dict[str, list[float]] = {}
    for (group, _), bundled in values_of_bundle.items():
        values_of_group.setdefault(group, []).append(join(bundled))
    return values_of_group


def mean_and_error(task: BenchmarkTask, values_of_group: Mapping[str, list[float]]) -> tuple[float, float]:
    """The benchmark's own mean of values by group, and its standard error."""
    parts: list[tuple[float, list[float]]] = []
    if task.weights is None:
        everything: list[float] = []
        for values in values_of_group.values():
            everything += values
        parts.append((1.0, everything))
    else:
        for name, weight in task.weights(values_of_group).items():
            parts.append((weight, values_of_group[name]))
    mean = sum(weight * statistics.fmean(values) for weight, values in parts)
    variance = sum(weight**2 * statistics.pvariance(values) / len(values) for weight, values in parts)
    return mean, math.sqrt(variance)


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
    images: each `[3, H, W]`, of all conversations in the order of their places.
    thinking: whether the model is asked to think first.
    generation: options of `generate`.
    """
    prompts = [render_prompt(processor, turns, thinking) for turns in conversations]
    inputs = processor(
        text=prompts, images=list(images) or None, padding=True, padding_side="left", return_tensors="pt"
    )
    prompt_length = inputs["input_ids"].shape[1]
    generated = model.generate(**_move_to_device(inputs, model.device), **generation)[:, prompt_length:]
    texts = processor.batch_decode(generated, skip_special_tokens=False)
    return [answer_in(processor, text, thinking) for text in texts]


@torch.inference_mode()
def expected_losses(
    model: FusionVlmForConditionalGeneration,
    processor: FusionProcessor,
    asked: Sequence[Conversation],
    expected: Sequence[str],
) -> tuple[list[float], list[int]]:
    """For each expected answer, the sum of -log p over its tokens and its end, and how many they are."""
    items = []
    for question, answer in zip(asked, expected, strict=True):
        earlier = [replace(turn, learnt=False) for turn in question.messages]
        answered = replace(question, messages=(*earlier, Message("assistant", answer)))
        items.append(training_item(answered, processor, NO_LIMIT))
    batch = ConversationCollator(processor)(items)
    labels = batch.pop("labels")[:, 1:].to(model.device)
    logits = model(**_move_to_device(batch, model.device)).logits[:, :-1].float()
    token_losses = F.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), ignore_index=LABEL_IGNORED, reduction="none"
    )
    losses = token_losses.view(labels.shape).sum(1)
    return losses.tolist(), (labels != LABEL_IGNORED).sum(1).tolist()


def _move_to_device(inputs: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """The tensors, and the tensors in lists, on a device."""
    moved: dict[str, Any] = {}
    for name, value in inputs.items():
        if isinstance(value, list):
            moved[name] = [each.to(device) for each in value]
        else:
            moved[name] = value.to(device)
    return moved


def pick_examples(
    task: BenchmarkTask, score: Score, count: int
) -> list[tuple[BenchmarkQuestion, str, float]]:
    """Questions spread over the task, each with its answer and points."""
    step = max(len(task.questions) // count, 1)
    answered = list(zip(task.questions, score.answers, score.points, strict=True))
    return answered[::step][:count]
