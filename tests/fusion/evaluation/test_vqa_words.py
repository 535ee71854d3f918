"""Answers to VQA are compared as its official evaluation compares them."""

import pytest

from fusion.evaluation.grading import vqa


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
