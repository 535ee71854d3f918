"""Questions about a drawn scene as the turns of a conversation."""

from __future__ import annotations

from itertools import permutations
from typing import Literal

import numpy as np

from vision_core.images.scene_language import Question, pair_questions
from vision_core.images.scenes import Scene

Turns = Literal["one", "all"]
GRID = 8  # places are told as columns and rows of so many
PAIRS = 2  # ordered pairs of objects that a lesson compares, beside the pair of the scene's own questions


def scene_turns(scene: Scene, index: int, turns: Turns, rng: np.random.Generator) -> list[Question]:
    """`one`: a question, whose kind goes through all kinds as `index` rises. `all`: every question in random order, more pairs of objects, and where each is.

    Telling where each object is teaches a language model to find what a word names; the questions about places stand on that.
    """
    if turns == "one":
        return [scene.questions[index % len(scene.questions)]]
    side = scene.masks.shape[0]
    seen = [each for each in scene.objects if each.area]
    pairs = list(permutations(seen, 2))
    chosen = [pairs[number] for number in rng.permutation(len(pairs))[:PAIRS]]
    asked = [*scene.questions, *(question for pair in chosen for question in pair_questions(*pair, side)), _places(scene, rng)]
    return [asked[number] for number in rng.permutation(len(asked))]


def _places(scene: Scene, rng: np.random.Generator) -> Question:
    side = scene.masks.shape[0]
    seen = [each for each in scene.objects if each.area]
    told = [f"{each.colour} {_cell(each.centre[0], side)} {_cell(each.centre[1], side)} {each.category}" for each in seen]
    return Question("places", "Where is each object?", ", ".join(told[number] for number in rng.permutation(len(told))))


def _cell(at: float, side: int) -> int:
    return min(int(at * GRID / side), GRID - 1) + 1
