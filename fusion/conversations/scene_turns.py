"""Chooses the questions that a conversation asks about a drawn scene.

It also gives the words for what lies under each cell of a grid over the scene.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from vision_core.scenes.colours import COLOURS
from vision_core.scenes.draw import CATEGORIES, Scene
from vision_core.scenes.language import COLUMNS, NUMBER_WORDS, Question, SceneObject
from vision_core.scenes.textures import TEXTURES

QuestionsPerScene = Literal["one", "all"]
BACKDROP = ("backdrop",)
SCENE_WORDS = (
    *BACKDROP,
    *COLOURS,
    *TEXTURES,
    *CATEGORIES,
    *COLUMNS,
    *map(str, range(1, 1 + len(COLUMNS))),
    *NUMBER_WORDS,
)


def scene_turns(
    scene: Scene, index: int, turns: QuestionsPerScene, rng: np.random.Generator
) -> list[Question]:
    """The questions of a conversation about scene number `index`.

    With `one` it is a single question, and its kind goes through all kinds as `index` rises. With
    `all` it is every question in random order; for scenes with an odd index it is instead what and
    where each object is.

    A comparison is answered in steps: first what is compared, each behind the colour that names its
    object, then the answer ("red c blue f yes"). So a language model looks a place up where it has
    just read whose place it is. No place is told twice in a conversation, because the second time it
    would be copied from the first, without a look at the picture.
    """
    if turns == "one":
        question = scene.questions[index % len(scene.questions)]
        return [_answer_in_steps(question)]
    if index % 2:
        return what_and_where(scene, rng)
    return _shuffle([_answer_in_steps(question) for question in scene.questions], rng)


def what_and_where(scene: Scene, rng: np.random.Generator) -> list[Question]:
    """For every visible object a question for its surface, kind and place, in random order.

    The question names the object by its colour.
    """
    questions = []
    for seen in scene.objects:
        if seen.area:
            text = f"What is the {seen.colour} object, and where?"
            questions.append(Question("object", text, " ".join(words_of(seen, scene))))
    return _shuffle(questions, rng)


def words_of(seen: SceneObject, scene: Scene) -> tuple[str, ...]:
    """The words for an object: colour, surface, kind, column, row, metres."""
    return seen.colour, seen.texture, seen.category, *seen.place(len(scene.masks)).words


def words_of_cells(scene: Scene, grid: int) -> list[tuple[str, ...]]:
    """For each cell of a grid, row by row, the words of its object, or `BACKDROP`."""
    words = [BACKDROP]
    for seen in scene.objects:
        words.append(words_of(seen, scene))
    return [words[number] for number in object_of_cells(scene.masks, grid, len(words)).tolist()]


def object_of_cells(masks: Tensor, grid: int, numbers: int) -> Tensor:
    """The number `[grid * grid]` of the object with most pixels in each cell.

    It is 0, the backdrop, where no object has an eighth of the cell.

    masks: object numbers `[S, S]` below `numbers`, 0 for the backdrop.
    """
    size, rest = divmod(len(masks), grid)
    assert not rest, f"{len(masks)} pixels cannot be divided into {grid} cells of one size"
    cells = masks.long().unfold(0, size, size).unfold(1, size, size).reshape(grid * grid, size * size)
    shares = F.one_hot(cells, numbers).float().mean(1)
    shares[:, 0] = 1 / 8
    return shares.argmax(1)


def _shuffle(questions: Sequence[Question], rng: np.random.Generator) -> list[Question]:
    return [questions[number] for number in rng.permutation(len(questions))]


def _answer_in_steps(question: Question) -> Question:
    """The question with an answer that begins with what is read from the picture for it."""
    return replace(question, answer=" ".join((*question.readings, question.answer)))
