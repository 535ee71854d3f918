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
