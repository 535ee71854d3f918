"""Graders against the grades of official code and what people would say, and CIDEr-D against a slow
loop."""

import importlib.util
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from fusion.evaluation import grading
from fusion.evaluation.grading import (
    cider_d,
    exact,
    last_word,
    letter,
    normalise,
    pope_figures,
    pope_parse,
    vqa,
    yes_no,
)

OFFICIAL = json.loads(Path(__file__).with_name("official_grades.json").read_text(encoding="utf-8"))
GRADERS = {name: getattr(grading, name) for name in ("mmvp", "cv_bench", "mmbench", "vqa", "textvqa", "gqa")}
GRADERS["pope"] = yes_no
MISSING = 'lmms-eval is missing: pip install -e ".[lmms]"'
needs_lmms_eval = pytest.mark.skipif(importlib.util.find_spec("lmms_eval") is None, reason=MISSING)


def our_grade(benchmark, row):
    expected = row["expected"] if isinstance(row["expected"], list) else [row["expected"]]
    return pytest.approx(float(GRADERS[benchmark](row["given"], expected, row.get("choices", ()))))


@pytest.mark.parametrize("benchmark", OFFICIAL)
def test_grades_are_the_official_ones(benchmark):
    """But where an answer tells its letter in a way that the official code does not read, by one of
    four reasons."""
    rows = OFFICIAL[benchmark]["answers"]
    same = [row for row in rows if "why" not in row]
    assert len(same) >= (100 if benchmark not in ("textvqa", "gqa") else 25)
    assert [row for row in same if our_grade(benchmark, row) != row["official"]] == []
    others = [row for row in rows if "why" in row]
    reasons = {"text of a choice", "marked letter", "announced letter", "letter in lower case"}
    assert {row["why"] for row in others} <= reasons
    assert [row for row in others if our_grade(benchmark, row) != 1 - row["official"]] == []


@needs_lmms_eval
def test_official_grades_are_those_of_lmms_eval(tmp_path):
    script = Path(__file__).with_name("official_grades.py")
    subprocess.run(
        [sys.executable, script, "--output", tmp_path / "grades.json"], check=True, capture_output=True
    )
    assert json.loads((tmp_path / "grades.json").read_text(encoding="utf-8")) == OFFICIAL


def test_figures_of_pope_are_those_of_its_own_script():
    rows = OFFICIAL["pope"]["answers"]
    figures = pope_figures([row["given"] for row in rows], [row["expected"] for row in rows])
    expected = {name: value for name, value in OFFICIAL["pope"]["figures"].items() if name != "accuracy"}
    assert figures == pytest.approx(expected)
    assert pope_figures(["no", "no"], ["yes", "no"]) == {"F1": 0, "precision": 0, "recall": 0, "yes ratio": 0}
    assert pope_figures(["yes"], ["no"]) == {"F1": 0, "precision": 0, "recall": 0, "yes ratio": 100}


@pytest.mark.parametrize(
    ("one", "other", "score"),
    [
        ("2", "two", 1),
        ("dont know", "don't know", 1),
        ("1,000", "1000", 1),
        ("t-shirt", "t shirt", 1),
        ("$5", "5", 0),
        ("the dog", "dog", 1),
        ("none", "0", 1),
    ],
)
def test_answers_to_vqa_are_compared_as_officially(one, other, score):
    assert vqa(one, [other] * 10, ()) == score and vqa(other, [one] * 10, ()) == score


TOLD = ["A red cup", "The answer is B", "**B**", "[B]", "\\boxed{B}", "The answer is a red cup.", "b", "(B)"]


@pytest.mark.parametrize("grader", ["letter", "mmvp", "cv_bench", "mmbench"])
@pytest.mark.parametrize("given", [*TOLD, "B. A red cup"])
def test_letters_that_are_told_are_read(grader, given):
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
def test_what_tells_no_letter_is_left_to_the_benchmark(given):
    assert not letter(given, ("B",), ("one", "two"))


def test_normalised():
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


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("Yes", "yes"),
        ("yes, it is", "yes"),
        ("No", "no"),
        ("It is, yes", "yes"),
        ("", "yes"),
        ("yesterday", "yes"),
        ("I do not see one", "no"),
    ],
)
def test_yes_and_no_are_parsed_as_pope_does(given, said):
    assert pope_parse(given) == said
    assert yes_no(given, (said,), ("yes", "no"))


def test_last_word():
    """What was read off before a choice does not count, but nothing is put in or left out, and
    without choices every word counts."""
    expected, choices = ("red a blue f yes",), ("yes", "no")
    assert all(
        last_word(given, expected, choices)
        for given in ("red a blue f yes", "red a blue a Yes.", "red g blue b yes")
    )
    assert not any(
        last_word(given, expected, choices)
        for given in ("red a blue f no", "yes", "", "red a blue f yes yes", "yes red a blue f")
    )
    assert last_word("red", ("red",), ("red", "blue")) and not last_word("not red", ("red",), ("red", "blue"))
    assert last_word("red star c", ("red star c",), ()) and not last_word("blue star c", ("red star c",), ())


def test_exact():
    assert exact("A dog.", ("cat", "dog"), ()) and not exact("dogs", ("dog",), ())


def test_vqa_is_the_mean_over_people_left_out():
    people = ("red", "red", "red", "blue", "red", "red", "red", "red", "red", "red")
    assert vqa("Red", people, ()) == 1.0 and vqa("green", people, ()) == 0.0
    assert vqa("blue", people, ()) == pytest.approx((9 * (1 / 3) + 0) / 10)


def slow_cider_d(given, references):
    """Vedantam et al. 2015, CIDEr-D, term by term."""
    count = len(references)

    def grams(words, n):
        return [tuple(words[at : at + n]) for at in range(len(words) - n + 1)]

    def weight(gram, n):
        images = sum(any(gram in grams(text.split(), n) for text in of_image) for of_image in references)
        return math.log(count / max(images, 1))

    scores = []
    for text, of_image in zip(given, references, strict=True):
        total = 0.0
        for n in range(1, 5):
            for reference in of_image:
                one, other = grams(text.split(), n), grams(reference.split(), n)
                dot = norm_one = norm_other = 0.0
                for gram in set(one) | set(other):
                    a, b = one.count(gram) * weight(gram, n), other.count(gram) * weight(gram, n)
                    dot, norm_one, norm_other = (dot + min(a, b) * b, norm_one + a * a, norm_other + b * b)
                difference = len(text.split()) - len(reference.split())
                cosine = dot / math.sqrt(norm_one * norm_other) if norm_one * norm_other else 0.0
                total += cosine * math.exp(-(difference**2) / 72) / len(of_image) / 4
        scores.append(10 * total)
    return scores


def test_cider_d_against_the_loop():
    references = [
        ["a dog runs on grass", "the brown dog runs"],
        ["two red cars in a street", "cars parked"],
        ["a dog and a red car", "a dog sits"],
    ]
    given = ["a dog runs on the grass grass", "red cars", "nothing of it"]
    assert cider_d(given, references) == pytest.approx(slow_cider_d(given, references), rel=1e-12)
    perfect = cider_d([each[0] for each in references], references)
    assert all(score > other for score, other in zip(perfect, cider_d(given, references), strict=True))
