"""Describe a drawn scene: captions, and questions whose answers cannot be guessed from the
question."""

from collections import Counter
from dataclasses import dataclass, field
from operator import attrgetter
from typing import NamedTuple

from vision_core.randomness import numpy_generator
from vision_core.scenes.colours import COLOURS
from vision_core.scenes.layout import CATEGORIES, MAX_COMPANIONS
from vision_core.scenes.textures import TEXTURES

CLEARLY_APART = 0.06  # of the side: closer centres are not asked about
CLEARLY_DEEPER = 0.3  # metres
NUMBER_WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight")
COLUMNS = "abcdefgh"  # of the chessboard on which places are told; it has as many rows


class Place(NamedTuple):
    """Where the centre of the visible part of an object is: column and row of a chessboard over the
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
    """An object as it is seen.

    box: of the visible part, (x0, y0, x1, y1) in pixels, end exclusive.
    depth: in metres.
    area: the number of visible pixels.
    """

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
        """The place in a picture of `side` pixels."""
        x, y = self.centre
        return Place(_cell(x, side), _cell(y, side), round(self.depth))


@dataclass(frozen=True)
class Question:
    """A question with its answer.

    kind: category, colour, texture (what there is); left_of, above, nearest, count, depth_order
        (where it is).
    readings: what a comparison is read off from: the colour of each of its two objects, followed by
        the object's column, row or metres.
    """

    kind: str
    text: str
    answer: str
    choices: tuple[str, ...] = field(default=())
    readings: tuple[str, ...] = field(default=())


def describe(objects: list[SceneObject]) -> list[str]:
    """Write captions from short to long: the main object, the objects around it, each object with
    its surface."""
    main = objects[0]
    number_of_kind = Counter(each.category for each in objects)
    same = number_of_kind[main.category] - 1
    short = f"{_with_article(main.colour)} {main.category}"
    counts = [_counted(number, kind) for kind, number in number_of_kind.items()]
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
    """Ask about a scene. Which objects the questions name, and in which order, is drawn from `name`,
    so that every answer is equally likely."""
    rng = numpy_generator("scene_questions", *name)
    questions = [*_questions_about_main(objects[0]), _count_question(objects)]
    seen = [each for each in objects if each.area]
    if len(seen) < 2:
        return questions
    shuffled = [seen[place] for place in rng.permutation(len(seen))]
    questions.append(_nearest_question(shuffled))
    return questions + _pair_questions(shuffled[0], shuffled[1], side)


def _cell(at: float, side: int) -> int:
    """The row or column of the chessboard at a coordinate in a picture of `side` pixels."""
    return min(int(at * len(COLUMNS) / side), len(COLUMNS) - 1)


def _count_question(objects: list[SceneObject]) -> Question:
    kind = objects[0].category
    count = [each.category for each in objects].count(kind)
    numbers = tuple(map(str, range(1, MAX_COMPANIONS + 2)))
    return Question("count", f"How many objects of the kind '{kind}' are there?", str(count), numbers)


def _nearest_question(objects: list[SceneObject]) -> Question:
    nearest = min(objects, key=attrgetter("depth"))
    colours = tuple(each.colour for each in objects)
    choices = _listed([f"the {colour}" for colour in colours], "or")
    return Question("nearest", f"Which object is the nearest: {choices} one?", nearest.colour, colours)


def _questions_about_main(main: SceneObject) -> list[Question]:
    return [
        Question("category", "What is the largest object?", main.category, CATEGORIES),
        Question("colour", "What colour is the largest object?", main.colour, COLOURS),
        Question("texture", "What surface does the largest object have?", main.texture, tuple(TEXTURES)),
    ]


def _pair_questions(first: SceneObject, second: SceneObject, side: int) -> list[Question]:
    """Ask yes/no questions about an ordered pair, whose order is random, so that yes and no are
    equally likely."""
    one = f"the {first.colour} {first.category}"
    other = f"the {second.colour} {second.category}"
    column, row, metres = zip(first.place(side).words, second.place(side).words, strict=True)
    differences = (
        ("left_of", "left of", second.centre[0] - first.centre[0], CLEARLY_APART * side, column),
        ("above", "above", second.centre[1] - first.centre[1], CLEARLY_APART * side, row),
        ("depth_order", "nearer than", second.depth - first.depth, CLEARLY_DEEPER, metres),
    )
    questions = []
    for kind, words, difference, enough, (here, there) in differences:
        if abs(difference) >= enough:
            question = Question(
                kind=kind,
                text=f"Is {one} {words} {other}?",
                answer="yes" if difference > 0 else "no",
                choices=("yes", "no"),
                readings=(first.colour, here, second.colour, there),
            )
            questions.append(question)
    return questions


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
