"""Questions about a drawn scene as the turns of a conversation."""

from __future__ import annotations

from itertools import permutations
from typing import Literal

import numpy as np

from vision_core.images.scene_language import Question, SceneObject, pair_questions
from vision_core.images.scenes import Scene

Turns = Literal["one", "all"]
GRID = 8  # places are told as columns and rows of so many
PAIRS = 2  # ordered pairs of objects that a lesson compares, beside the pair of the scene's own questions


def scene_turns(scene: Scene, index: int, turns: Turns, rng: np.random.Generator) -> list[Question]:
    """`one`: a question, whose kind goes through all kinds as `index` rises. `all`: every question in random order, more pairs of objects, and where each is.

    Telling where an object is teaches a language model to find what a word names; the questions that compare places stand on that.
    """
    if turns == "one":
        return [scene.questions[index % len(scene.questions)]]
    side = scene.masks.shape[0]
    seen = [each for each in scene.objects if each.area]
    pairs = list(permutations(seen, 2))
    chosen = [pairs[number] for number in rng.permutation(len(pairs))[:PAIRS]]
    compared = [question for pair in chosen for question in pair_questions(*pair, side)]
    asked = [*scene.questions, *compared, *(_place(each, side) for each in seen)]
    return [asked[number] for number in rng.permutation(len(asked))]


def _place(seen: SceneObject, side: int) -> Question:
    column, row = (min(int(at * GRID / side), GRID - 1) + 1 for at in seen.centre)
    return Question("place", f"Where is the {seen.colour} {seen.category}?", f"{column} {row}")
