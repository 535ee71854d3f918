"""Questions about a drawn scene as the turns of a conversation, and the words for what lies under
each of its cells."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Literal

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from vision_core.scenes.colours import COLOURS
from vision_core.scenes.draw import CATEGORIES, Scene
from vision_core.scenes.language import COLUMNS, NUMBER_WORDS, Question, SceneObject
from vision_core.scenes.textures import TEXTURES

Turns = Literal["one", "all"]
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


def scene_turns(scene: Scene, index: int, turns: Turns, rng: np.random.Generator) -> list[Question]:
    """`one`: a question, whose kind goes through all kinds as `index` rises. `all`: every question
    in random order; of scenes with an odd index, what and where each object is instead.

    A comparison is answered in two steps, of which the first is said aloud: what is compared,
    behind the colour that names its object, then the answer ("red c blue f yes"). So a language
    model looks a place up where it has just read whose. No place is told twice in a conversation:
    it would be copied from the first time, without a look at the picture.
    """
    if turns == "one":
        return [_aloud(scene.questions[index % len(scene.questions)])]
    return what_and_where(scene, rng) if index % 2 else _shuffled(map(_aloud, scene.questions), rng)


def what_and_where(scene: Scene, rng: np.random.Generator) -> list[Question]:
    """Of every object that is seen, in random order and named by its colour: its surface, kind and
    place."""
    asked = [
        Question("object", f"What is the {each.colour} object, and where?", " ".join(words_of(each, scene)))
        for each in scene.objects
        if each.area
    ]
    return _shuffled(asked, rng)


def words_of(seen: SceneObject, scene: Scene) -> tuple[str, ...]:
    """Colour, surface, kind, column, row, metres."""
    return seen.colour, seen.texture, seen.category, *seen.place(len(scene.masks)).words


def words_of_cells(scene: Scene, grid: int) -> list[tuple[str, ...]]:
    """Of each cell of a grid, row by row, the words of its object, or `BACKDROP`."""
    words = [BACKDROP, *(words_of(each, scene) for each in scene.objects)]
    return [words[number] for number in object_of_cells(scene.masks, grid, len(words)).tolist()]


def object_of_cells(masks: Tensor, grid: int, numbers: int) -> Tensor:
    """masks: `[S, S]` object numbers below `numbers`, 0 for none. `[grid * grid]`: the number with
    most pixels in each cell, or 0 where none has an eighth."""
    size, rest = divmod(len(masks), grid)
    assert not rest, f"{len(masks)} pixels have no {grid} cells of one size"
    cells = masks.long().unfold(0, size, size).unfold(1, size, size).reshape(grid * grid, size * size)
    shares = F.one_hot(cells, numbers).float().mean(1)
    shares[:, 0] = 1 / 8
    return shares.argmax(1)


def _shuffled(asked: Iterable[Question], rng: np.random.Generator) -> list[Question]:
    asked = list(asked)
    return [asked[number] for number in rng.permutation(len(asked))]


def _aloud(question: Question) -> Question:
    return replace(question, answer=" ".join((*question.readings, question.answer)))
