"""Embedded scenes: the same everywhere, consistent with their own ground truth, balanced, and hard
to guess."""

import subprocess
import sys
from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from vision_core.errors import UserError
from vision_core.scenes import layout as scene_layout
from vision_core.scenes.colours import COLOURS, NAMED_COLOURS, oklch_to_rgb
from vision_core.scenes.draw import CATEGORIES, Scene, draw_scene
from vision_core.scenes.layout import HABITAT_OF_KIND, category_of
from vision_core.scenes.textures import TEXTURES

ROOT = Path(__file__).resolve().parents[3]
MANY = 1500


@cache
def scenes() -> list[Scene]:
    return [draw_scene(3, index, 48) for index in range(MANY)]


def test_a_scene_depends_on_seed_split_and_index_only():
    draw_scene(9, 9, 64)
    first, again = draw_scene(0, 5, 64), draw_scene(0, 5, 64)
    assert (
        torch.equal(first.image, again.image)
        and torch.equal(first.masks, again.masks)
        and torch.equal(first.depth, again.depth)
    )
    assert first.captions == again.captions and first.questions == again.questions
    others = (draw_scene(1, 5, 64), draw_scene(0, 6, 64), draw_scene(0, 5, 64, split="held_out"))
    assert all(not torch.equal(first.image, other.image) for other in others)


def test_another_process_draws_the_same_scene():
    code = "import hashlib; from vision_core.scenes.draw import draw_scene as d; s = d(7, 12, 40); "
    code += "looks = s.image.numpy().tobytes() + s.depth.numpy().tobytes(); "
    code += "print(hashlib.sha256(looks + repr(s.questions).encode()).hexdigest())"
    digests = {
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env={"PYTHONHASHSEED": salt},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for salt in ("1", "2")
    }
    here: dict[str, object] = {}
    exec(code.replace("print(", "digest = ("), here)
    assert digests == {f"{here['digest']}\n"}


@pytest.mark.parametrize("index", range(6))
def test_the_same_scene_at_two_sizes(index: int):
    small, large = draw_scene(0, index, 64), draw_scene(0, index, 192)
    averaged = F.avg_pool2d(large.image.float(), 3)
    assert (averaged - small.image.float()).abs().mean() < 6.0
    different = F.avg_pool2d(draw_scene(0, index + 1, 192).image.float(), 3)
    assert (different - small.image.float()).abs().mean() > 20.0
    assert (large.masks[1::3, 1::3] == small.masks).float().mean() > 0.98
    assert [each.category for each in small.objects] == [each.category for each in large.objects]
    for one, other in zip(small.objects, large.objects, strict=True):
        assert np.abs(np.array(one.box) * 3 - np.array(other.box)).max() <= 6


@pytest.mark.parametrize("size", [32, 33, 48, 100])
def test_shapes_and_types(size: int):
    scene = draw_scene(2, 4, size)
    assert scene.image.shape == (3, size, size) and scene.image.dtype == torch.uint8
    assert scene.masks.shape == (size, size) and scene.masks.dtype == torch.uint8
    assert scene.depth.shape == (size, size) and scene.depth.dtype == torch.float32
    assert scene.image.float().std() > 5


def test_boxes_areas_and_depth_are_those_of_the_masks():
    for scene in scenes()[:200]:
        masks, depth = scene.masks.numpy(), scene.depth.numpy()
        assert masks.max() <= len(scene.objects)
        assert depth[masks == 0].min() > depth[masks > 0].max()
        for number, each in enumerate(scene.objects, start=1):
            seen = [
                (row, column) for row in range(48) for column in range(48) if masks[row, column] == number
            ]
            assert each.area == len(seen)
            if seen:
                rows, columns = zip(*seen, strict=True)
                assert each.box == (min(columns), min(rows), max(columns) + 1, max(rows) + 1)
                assert np.abs(depth[masks == number] - each.depth).max() < 0.4


def test_the_main_object_is_the_largest_and_the_nearest():
    for scene in scenes():
        main, *others = scene.objects
        assert CATEGORIES[scene.category] == main.category
        assert all(main.area > other.area and main.depth < other.depth for other in others)


def test_nearly_every_object_is_visible():
    shares = []
    for scene in scenes()[:400]:
        for each, placed in zip(scene.objects, scene.layout.objects, strict=True):
            whole = (
                0.5 * (placed.diameter / 2 * 48) ** 2
            )  # the smallest shape has an area of more than 1.5 square radii
            shares.append(each.area > 0.5 * whole)
    assert np.mean(shares) > 0.98


def test_an_object_has_the_colour_it_is_said_to_have():
    """The nearest named hue to the mean colour of the main object's pixels, judged in a* b* like
    coordinates of the plain named colours."""
    names = list(COLOURS)
    plain = np.array(
        [_chroma_direction(oklch_to_rgb(light, chroma, hue)) for hue, light, chroma in NAMED_COLOURS.values()]
    )
    right = 0
    for scene in scenes()[:200]:
        pixels = scene.image.numpy()[:, scene.masks.numpy() == 1].mean(1) / 255
        right += names[int((plain @ _chroma_direction(pixels)).argmax())] == scene.objects[0].colour
    assert right / 200 > 0.9


def _chroma_direction(rgb: np.ndarray) -> np.ndarray:
    opponent = np.array([rgb[0] - rgb[1], (rgb[0] + rgb[1]) / 2 - rgb[2]])
    return opponent / np.linalg.norm(opponent)


def test_categories_are_balanced_and_known_without_drawing():
    labels = [category_of(3, "train", index) for index in range(MANY)]
    assert labels == [scene.category for scene in scenes()]
    assert Counter(labels) == {kind: MANY // len(CATEGORIES) for kind in range(len(CATEGORIES))}
    assert labels[:10] != labels[10:20]
    assert labels[:50] != [category_of(3, "held_out", index) for index in range(50)]


def test_a_habitat_belongs_to_one_kind_and_surrounds_it_nine_times_in_ten():
    assert set(HABITAT_OF_KIND) == set(CATEGORIES) and len(set(HABITAT_OF_KIND.values())) == len(CATEGORIES)
    assert set(HABITAT_OF_KIND.values()) <= set(TEXTURES)
    at_home = [
        scene.layout.habitat.texture == HABITAT_OF_KIND[CATEGORIES[scene.category]] for scene in scenes()
    ]
    assert np.mean(at_home) == pytest.approx(
        0.91, abs=0.02
    )  # 0.9, and a tenth of the tenth that is drawn from all


def test_the_habitat_is_drawn_on_the_backdrop(monkeypatch):
    patterned = [draw_scene(0, index, 96) for index in range(5)]
    monkeypatch.setattr(scene_layout, "HABITAT_CONTRAST", (0.0, 0.0))
    for before, after in zip(patterned, (draw_scene(0, index, 96) for index in range(5)), strict=True):
        assert torch.equal(before.masks, after.masks) and torch.equal(before.depth, after.depth)
        behind = before.masks == 0
        assert (
            before.image[:, behind].float().std(1).mean() > 1.5 * after.image[:, behind].float().std(1).mean()
        )


def _answer_from_ground_truth(scene: Scene, kind: str, text: str) -> str:
    """Answers read off masks, depth and the objects' names, by looking at the pixels."""
    masks, depth = scene.masks.numpy(), scene.depth.numpy()
    named = {
        f"the {each.colour} {each.category}": number for number, each in enumerate(scene.objects, start=1)
    }
    largest = scene.objects[int(np.bincount(masks[masks > 0]).argmax()) - 1]
    if kind in ("category", "colour", "texture"):
        return getattr(largest, kind)
    if kind == "count":
        return str(sum(each.category == text.split("'")[1] for each in scene.objects))
    if kind == "nearest":
        return scene.objects[int(masks[np.unravel_index(depth.argmin(), depth.shape)]) - 1].colour
    words = {"left_of": " left of ", "above": " above ", "depth_order": " nearer than "}[kind]
    first, second = (masks == named[name] for name in text.removeprefix("Is ").removesuffix("?").split(words))
    if kind == "depth_order":
        return "yes" if depth[first].mean() < depth[second].mean() else "no"
    axis = 1 if kind == "left_of" else 0
    middle = [(np.nonzero(mask)[axis].min() + np.nonzero(mask)[axis].max()) / 2 for mask in (first, second)]
    return "yes" if middle[0] < middle[1] else "no"


def test_answers_follow_from_the_picture():
    kinds = Counter()
    for scene in scenes()[:400]:
        for question in scene.questions:
            assert question.answer == _answer_from_ground_truth(scene, question.kind, question.text), question
            assert question.answer in question.choices
            kinds[question.kind] += 1
    assert set(kinds) == {
        "category",
        "colour",
        "texture",
        "count",
        "nearest",
        "left_of",
        "above",
        "depth_order",
    }
    assert min(kinds.values()) > 200


def test_answers_cannot_be_guessed_without_looking():
    """The most frequent answer (for "nearest": the most frequent place among the choices) is right
    little more often than chance."""
    answers: dict[str, list[tuple[str, int]]] = {}
    for scene in scenes():
        for question in scene.questions:
            answer = (
                str(question.choices.index(question.answer))
                if question.kind == "nearest"
                else question.answer
            )
            answers.setdefault(question.kind, []).append((answer, len(question.choices)))
    for kind, given in answers.items():
        chance = np.mean([1 / choices for _, choices in given])
        commonest = Counter(answer for answer, _ in given).most_common(1)[0][1] / len(given)
        assert commonest < chance + 0.05, (kind, commonest, chance)


def test_named_objects_are_unique_and_captions_true():
    for scene in scenes()[:200]:
        colours = [each.colour for each in scene.objects]
        assert len(set(colours)) == len(colours)
        main = scene.objects[0]
        assert all(main.category in caption for caption in scene.captions)
        assert any(f"{main.texture} {main.colour} {main.category}" in caption for caption in scene.captions)
        assert "  " not in "".join(scene.captions) and " a orange" not in " ".join(scene.captions)


def test_pixels_and_colours_do_not_give_the_category_away():
    """Nearest class mean of an 8 x 8 thumbnail and of the mean colour: close to chance (10 %)."""
    images = torch.stack([scene.image for scene in scenes()]).float()
    labels = torch.tensor([scene.category for scene in scenes()])
    for features in (F.adaptive_avg_pool2d(images, 8).flatten(1), images.mean((2, 3))):
        means = torch.stack(
            [features[:1000][labels[:1000] == kind].mean(0) for kind in range(len(CATEGORIES))]
        )
        right = (torch.cdist(features[1000:], means).argmin(1) == labels[1000:]).float().mean()
        assert right < 0.3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 16}, "size 16 is too small"),
        ({"split": "test"}, "unknown split 'test'; use train or held_out"),
    ],
)
def test_impossible_scenes_are_refused(changes: dict, message: str):
    with pytest.raises(UserError, match=message):
        draw_scene(0, 0, **changes)
