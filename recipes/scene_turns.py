"""Questions about a drawn scene as the turns of a conversation."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np

from vision_core.images.scene_language import Question, SceneObject
from vision_core.images.scenes import Scene

Turns = Literal["one", "all"]
LISTING = "What stands where, and how far away?"


def scene_turns(scene: Scene, index: int, turns: Turns, rng: np.random.Generator) -> list[Question]:
    """`one`: a question, whose kind goes through all kinds as `index` rises. `all`: every question in random order, then a list of what stands where.

    Objects are compared in two steps, of which the first is said aloud: their columns, rows or metres, each behind the colour that names it, then the answer
    ("red 3 blue 6 yes"). So a language model looks a place up where it has just read whose. The list has places so too ("star red 3 5 4"); it comes last, for
    what it says could be copied into later answers without a look at the picture.
    """
    if turns == "one":
        return [_aloud(scene.questions[index % len(scene.questions)])]
    side = scene.masks.shape[0]
    seen = [each for each in scene.objects if each.area]
    listed = ", ".join(_listed(seen[number], side) for number in rng.permutation(len(seen)))
    asked = [_aloud(scene.questions[number]) for number in rng.permutation(len(scene.questions))]
    return [*asked, Question("list", LISTING, listed)]


def _aloud(question: Question) -> Question:
    said = (f"{name} {number}" for name, number in question.readings)
    return replace(question, answer=" ".join((*said, question.answer)))


def _listed(seen: SceneObject, side: int) -> str:
    return " ".join(map(str, (seen.category, seen.colour, *seen.readings(side).values())))
