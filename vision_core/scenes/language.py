"""What can be said about an embedded scene: captions, and questions whose answers cannot be guessed
from the question."""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from vision_core.randomness import numpy_generator
from vision_core.scenes.colours import COLOURS
from vision_core.scenes.layout import CATEGORIES, MAX_COMPANIONS
from vision_core.scenes.textures import TEXTURES

CLEARLY_APART = 0.06  # of the side: closer centres are not asked about
CLEARLY_DEEPER = 0.3  # metres
NUMBER_WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight")
COLUMNS = "abcdefgh"  # of the chessboard on which places are told; it has as many rows


class Place(NamedTuple):
    """Where the centre of what is seen of an object is: column and row of a chessboard over the
    picture, from 0 at the top left, and whole metres."""

    column: int
    row: int
    metres: int

    @property
    def words(self) -> tuple[str, str, str]:
        """A letter, a digit and a number word: no word has two meanings."""
        return COLUMNS[self.column], str(self.row + 1), NUMBER_WORDS[self.metres]


@dataclass(frozen=True)
class SceneObject:
    """An object as it is seen: names, box of the visible part (x0, y0, x1, y1 in pixels, end
    exclusive), depth in metres, visible area in pixels."""

    category: str
    colour: str
    texture: str
    box: tuple[int, int, int, int]
    depth: float
    area: int

    @property
    def centre(self) -> tuple[float, float]:
        return (self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2

    def place(self, side: int) -> Place:
        """In a picture of `side` pixels."""
        column, row = (min(int(at * len(COLUMNS) / side), len(COLUMNS) - 1) for at in self.centre)
        return Place(column, row, round(self.depth))


@dataclass(frozen=True)
class Question:
    """A question with its answer. `kind`: category, colour, texture (what); left_of, above,
    nearest, count, depth_order (where).

    `readings`: what a comparison is read off from, the column, row or metres of each of its two
    objects behind the object's colour.
    """

    kind: str
    text: str
    answer: str
    choices: tuple[str, ...] = field(default=())
    readings: tuple[str, ...] = field(default=())


def describe(objects: list[SceneObject]) -> list[str]:
    """Captions from short to long: the main object, what stands around it, each object with its
    surface."""
    main, same = objects[0], [each.category for each in objects[1:]].count(objects[0].category)
    short = f"{_with_article(main.colour)} {main.category}"
    kinds = list(dict.fromkeys(each.category for each in objects))
    counts = [_counted([each.category for each in objects].count(kind), kind) for kind in kinds]
    surfaces = [f"{_with_article(each.texture)} {each.colour} {each.category}" for each in objects]
    captions = [
        short,
        f"a picture of {_with_article(main.texture)} {main.colour} {main.category}",
        f"{_listed(counts)} on a plain backdrop",
    ]
    if len(objects) > 1:
        captions.append(f"{surfaces[0]} in front of {_listed(surfaces[1:])}")
    if same:
        captions.append(f"{short} with {_counted(same, 'other ' + main.category)} of its kind behind it")
    return captions


def question(objects: list[SceneObject], side: int, name: tuple[int | str, ...]) -> list[Question]:
    """Questions about a scene; which objects they name, and in which order, is drawn from `name`,
    so that every answer is equally likely."""
    rng = numpy_generator("scene_questions", *name)
    questions = _what(objects, rng)
    same = [each.category for each in objects].count(objects[0].category)
    numbers = tuple(str(number) for number in range(1, MAX_COMPANIONS + 2))
    questions.append(
        Question(
            "count", f"How many objects of the kind '{objects[0].category}' are there?", str(same), numbers
        )
    )
    seen = [each for each in objects if each.area]
    if len(seen) < 2:
        return questions
    shuffled = [seen[place] for place in rng.permutation(len(seen))]
    colours = tuple(each.colour for each in shuffled)
    nearest = min(shuffled, key=lambda each: each.depth).colour
    questions.append(
        Question(
            "nearest",
            f"Which object is the nearest: {_listed(['the ' + each for each in colours], 'or')} one?",
            nearest,
            colours,
        )
    )
    return questions + _pair_questions(shuffled[0], shuffled[1], side)


def _what(objects: list[SceneObject], rng: np.random.Generator) -> list[Question]:
    main = objects[0]
    return [
        Question("category", "What is the largest object?", main.category, CATEGORIES),
        Question("colour", "What colour is the largest object?", main.colour, COLOURS),
        Question("texture", "What surface does the largest object have?", main.texture, tuple(TEXTURES)),
    ]


def _pair_questions(first: SceneObject, second: SceneObject, side: int) -> list[Question]:
    """Yes/no questions about an ordered pair: the order is random, so yes and no are equally
    likely."""
    one, other = f"the {first.colour} {first.category}", f"the {second.colour} {second.category}"
    column, row, metres = zip(first.place(side).words, second.place(side).words, strict=True)
    differences = (
        ("left_of", "left of", second.centre[0] - first.centre[0], CLEARLY_APART * side, column),
        ("above", "above", second.centre[1] - first.centre[1], CLEARLY_APART * side, row),
        ("depth_order", "nearer than", second.depth - first.depth, CLEARLY_DEEPER, metres),
    )
    return [
        Question(
            kind,
            f"Is {one} {words} {other}?",
            "yes" if difference > 0 else "no",
            ("yes", "no"),
            (first.colour, here, second.colour, there),
        )
        for kind, words, difference, enough, (here, there) in differences
        if abs(difference) >= enough
    ]


def _with_article(word: str) -> str:
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


def _counted(number: int, noun: str) -> str:
    plural = {"cross": "crosses", "fish": "fish"}
    if number == 1:
        return f"one {noun}"
    *before, last = noun.split(" ")
    return " ".join([NUMBER_WORDS[number], *before, plural.get(last, last + "s")])


def _listed(words: list[str], last: str = "and") -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} {last} {words[-1]}"
