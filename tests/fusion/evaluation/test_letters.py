"""Which letter an answer means: what it states beyond doubt, and what the graders make of it."""

import pytest

from fusion.evaluation import grading
from fusion.evaluation.grading import letter
from fusion.evaluation.letters import normalise

STATED = [
    "A red cup",
    "The answer is B",
    "**B**",
    "[B]",
    "\\boxed{B}",
    "The answer is a red cup.",
    "b",
    "(B)",
]


@pytest.mark.parametrize("grader", ["letter", "mmvp", "cv_bench", "mmbench"])
@pytest.mark.parametrize("given", [*STATED, "B. A red cup"])
def test_letters_that_are_stated_are_read(grader, given):
    grade = getattr(grading, grader)
    assert grade(given, ("B",), ("A blue cup", "A red cup")) and not grade(
        given, ("A",), ("A blue cup", "A red cup")
    )


@pytest.mark.parametrize("given", ["F", "(F)", "The answer is F", "kiwi"])
def test_more_than_four_choices(given):
    choices = ("apple", "pear", "plum", "fig", "", "kiwi")
    assert grading.mmbench(given, ("F",), choices) and not grading.mmbench(given, ("D",), choices)
    assert not grading.mmbench("E", ("E",), choices)  # it has no text


@pytest.mark.parametrize(
    "given",
    ["A", "I cannot say", "The answer is not B", "**A** or **B**", "A. two", "", "The answer is a mystery"],
)
def test_what_states_no_letter_is_left_to_the_benchmark(given):
    assert not letter(given, ("B",), ("one", "two"))


def test_normalise():
    assert (
        normalise(" The  Red-ish ball. ") == "red-ish ball"
        and normalise("Yes!") == "yes"
        and normalise("3") == "3"
    )


@pytest.mark.parametrize(
    ("given", "right"),
    [
        ("B", 1),
        ("(B)", 1),
        ("b.", 1),
        ("(B) two", 1),
        ("B: two", 1),
        ("two", 1),
        ("Two.", 1),
        ("A", 0),
        ("", 0),
        ("Because", 0),
        ("B2", 0),
        ("three", 0),
    ],
)
def test_letter(given, right):
    assert letter(given, ("B",), ("one", "two", "a one")) == bool(right)


def test_a_text_that_is_two_choices_is_none():
    assert not letter("one", ("A",), ("one", "One."))


def test_an_article_is_no_letter_of_a_choice_that_is_not_there():
    assert letter("E", ("E",), "abcde") and not letter("I think so", ("A",), ("I think so not", "x"))
