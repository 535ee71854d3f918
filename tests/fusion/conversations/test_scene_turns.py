"""Conversations about drawn scenes, and words for their cells, say what is in them."""

import re

import numpy as np
import pytest
import torch

from fusion.conversations.scene_turns import BACKDROP, object_of_cells, scene_turns, words_of_cells
from vision_core.scenes.draw import Scene, draw_scene
from vision_core.scenes.language import NUMBER_WORDS
from vision_core.scenes.layout import DEPTH_GAP, MAIN_DIAMETER, OTHER_DIAMETER, REAL_DIAMETER

READ_OFF = {"left_of": 0, "above": 1, "depth_order": 2}
METRES = ["no", "one", "two", "three", "four", "five", "six", "seven", "eight"]


def lesson(scene: Scene, index: int):
    return scene_turns(scene, index, "all", np.random.default_rng(7))


def place(scene: Scene, colour: str) -> list[str]:
    """Column and row of an object's middle among 8, and its distance in whole metres, by looking at
    the masks."""
    (number,) = (number for number, each in enumerate(scene.objects, 1) if each.colour == colour)
    rows, columns = np.nonzero((scene.masks == number).numpy())
    column, row = (
        min(int((each.min() + each.max() + 1) / 2 * 8 / len(scene.masks)), 7) for each in (columns, rows)
    )
    return ["abcdefgh"[column], str(row + 1), METRES[round(scene.objects[number - 1].depth)]]


def test_every_question_and_of_every_second_scene_what_and_where():
    orders = set()
    for index in range(60):
        scene = draw_scene(2, index)
        asked = lesson(scene, 0)
        assert sorted(each.text for each in asked) == sorted(each.text for each in scene.questions)
        told = lesson(scene, 1)
        assert sorted(each.text for each in told) == sorted(
            f"What is the {each.colour} object, and where?" for each in scene.objects if each.area
        )
        for each in told:
            colour, texture, category, *where = each.answer.split()
            assert colour in each.text.split()
            assert (texture, category) in {
                (known.texture, known.category) for known in scene.objects if known.colour == colour
            }
            assert where == place(scene, colour)
        orders.add(told[0].answer.split()[0] == scene.objects[0].colour)
    assert orders == {True, False}, "the main object is not always the first"


def test_comparisons_are_read_off_aloud():
    """Before yes or no stand the two objects of the question, in its order, each with what is
    compared, from which the answer follows where they differ."""
    kinds, differing = set(), 0
    for index in range(120):
        scene = draw_scene(2, index)
        for question in lesson(scene, 0):
            if question.kind not in READ_OFF:
                continue
            one, first, other, second, answer = question.answer.split()
            assert [one, other] == [named.split()[0] for named in re.findall(r"the (\w+ \w+)", question.text)]
            assert [first, second] == [
                place(scene, colour)[READ_OFF[question.kind]] for colour in (one, other)
            ]
            if first != second:
                numbers = [METRES.index(each) if each in METRES else ord(each) for each in (first, second)]
                assert answer == ("yes" if numbers[0] < numbers[1] else "no")
                differing += 1
            kinds.add(question.kind)
    assert len(kinds) == 3 and differing > 150


def test_one_question_goes_through_the_kinds():
    scene = draw_scene(2, 5)
    kinds = [
        scene_turns(scene, index, "one", np.random.default_rng(0))[0].kind
        for index in range(len(scene.questions))
    ]
    assert kinds == [each.kind for each in scene.questions]


def test_the_object_of_a_cell_has_most_of_its_pixels():
    masks = torch.from_numpy(
        np.random.default_rng(1).choice([0, 0, 0, 0, 0, 0, 0, 1, 2, 3], (24, 24)).astype(np.uint8)
    )
    found = object_of_cells(masks, 6, 4)
    for cell in range(36):
        row, column = divmod(cell, 6)
        pixels = masks[4 * row : 4 * row + 4, 4 * column : 4 * column + 4].flatten().tolist()
        counts = [pixels.count(number) for number in (1, 2, 3)]
        assert int(found[cell]) == (0 if max(counts) <= 2 else 1 + counts.index(max(counts)))


def test_cells_are_of_one_size():
    with pytest.raises(AssertionError, match="64 pixels cannot be divided into 12 cells"):
        object_of_cells(torch.zeros(64, 64, dtype=torch.uint8), 12, 1)


def test_the_farthest_object_has_a_word():
    """A real size over an apparent one, or a gap behind the nearest: as scene_layout draws
    depths."""
    nearest = REAL_DIAMETER[1] / MAIN_DIAMETER[0]
    farthest = max(REAL_DIAMETER[1] / OTHER_DIAMETER[0], nearest + DEPTH_GAP)
    assert round(farthest) < len(METRES) and list(NUMBER_WORDS) == METRES


@pytest.mark.parametrize("grid", [4, 8])
def test_words_of_cells_are_of_what_covers_them(grid):
    for index in range(10):
        scene = draw_scene(4, index, 64)
        words = words_of_cells(scene, grid)
        assert len(words) == grid * grid and BACKDROP in words
        for cell, said in enumerate(words):
            number = int(object_of_cells(scene.masks, grid, 9)[cell])
            if number:
                seen = scene.objects[number - 1]
                assert list(said) == [seen.colour, seen.texture, seen.category, *place(scene, seen.colour)]
            else:
                assert said == BACKDROP
