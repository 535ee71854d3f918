"""Conversations about drawn scenes say what is in them."""

import re

import numpy as np

from recipes.scene_turns import scene_turns
from vision_core.images.scenes import Scene, draw_scene

READ_OFF = {"left_of": 0, "above": 1, "depth_order": 2}


def lesson(scene: Scene):
    return scene_turns(scene, 0, "all", np.random.default_rng(7))


def read_off(scene: Scene, colour: str) -> tuple[int, int, int]:
    """Column and row among 8 of an object's middle, from 1, and its distance in whole metres, by looking at the masks."""
    (number,) = (number for number, each in enumerate(scene.objects, 1) if each.colour == colour)
    rows, columns = np.nonzero((scene.masks == number).numpy())
    middles = [(each.min() + each.max() + 1) / 2 for each in (columns, rows)]
    column, row = (1 + min(int(middle) * 8 // len(scene.masks), 7) for middle in middles)
    return column, row, round(scene.objects[number - 1].depth)


def test_a_lesson_asks_everything_and_ends_with_what_stands_where():
    for index in range(60):
        scene = draw_scene(2, index)
        *asked, listing = lesson(scene)
        told = [re.fullmatch(r"(\w+) (\w+) (\d) (\d) (\d)", each).groups() for each in listing.answer.split(", ")]
        assert sorted(name[:2] for name in told) == sorted((each.category, each.colour) for each in scene.objects if each.area)
        assert all(read_off(scene, colour) == tuple(map(int, numbers)) for _, colour, *numbers in told)
        assert sorted(each.text for each in asked) == sorted(each.text for each in scene.questions)


def test_comparisons_are_read_off_aloud():
    """Before yes or no stand the two objects of the question, in its order, each with what is compared, from which the answer follows where they differ."""
    kinds, differing = set(), 0
    for index in range(120):
        scene = draw_scene(2, index)
        for question in lesson(scene):
            if question.kind not in READ_OFF:
                continue
            one, first, other, second, answer = question.answer.split()
            assert [one, other] == [named.split()[0] for named in re.findall(r"the (\w+ \w+)", question.text)]
            assert [int(first), int(second)] == [read_off(scene, colour)[READ_OFF[question.kind]] for colour in (one, other)]
            if first != second:
                assert answer == ("yes" if first < second else "no")
                differing += 1
            kinds.add(question.kind)
    assert len(kinds) == 3 and differing > 150


def test_one_question_goes_through_the_kinds():
    scene = draw_scene(2, 5)
    kinds = [scene_turns(scene, index, "one", np.random.default_rng(0))[0].kind for index in range(len(scene.questions))]
    assert kinds == [each.kind for each in scene.questions]
