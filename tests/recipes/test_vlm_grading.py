"""Graders against what people would say, and CIDEr-D against a slow loop."""

import math

import pytest

from recipes.vlm_grading import cider_d, exact, last_word, letter, normalised, vqa, yes_no


def test_normalised():
    assert normalised(" The  Red-ish ball. ") == "red-ish ball" and normalised("Yes!") == "yes" and normalised("3") == "3"


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


@pytest.mark.parametrize(("given", "right"), [("Yes", 1), ("yes, it is", 1), ("No", 0), ("It is, yes", 0), ("", 0), ("yesterday", 0)])
def test_yes_no(given, right):
    assert yes_no(given, ("yes",), ("yes", "no")) == bool(right)


def test_last_word():
    """What was read off before a choice does not count, but nothing is put in or left out, and without choices every word counts."""
    expected, choices = ("red a blue f yes",), ("yes", "no")
    assert all(last_word(given, expected, choices) for given in ("red a blue f yes", "red a blue a Yes.", "red g blue b yes"))
    assert not any(
        last_word(given, expected, choices) for given in ("red a blue f no", "yes", "", "red a blue f yes yes", "yes red a blue f")
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
                    dot, norm_one, norm_other = dot + min(a, b) * b, norm_one + a * a, norm_other + b * b
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
