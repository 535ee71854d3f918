"""Whether an answer is right: one pinned way for each kind of question, printed with every score.

The graders of published benchmarks give what the benchmark's own or lmms-eval's code gives:
tests/fusion/evaluation/official_grades.json holds its grades of some hundred answers each. One thing is added
where a letter is asked for: a letter that the answer tells beyond doubt (`told_letter`) is
believed, also where that code reads it wrongly or not at all.
"""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Sequence

from fusion.evaluation.letters import (
    cv_bench_letter,
    leading_letter,
    mmbench_letter,
    mmvp_letter,
    normalised,
    told_letter,
)
from fusion.evaluation.vqa_words import textvqa_processed, vqa_processed


def exact(given: str, expected: Sequence[str], choices: Sequence[str]) -> bool:
    """The normalised answer is one of the normalised expected ones."""
    return normalised(given) in {normalised(each) for each in expected}


def last_word(given: str, expected: Sequence[str], choices: Sequence[str]) -> bool:
    """As `exact`; but where `choices` say what the last word may be, an answer of as many words
    that ends alike.

    What comes before the last word a model reads off aloud.
    """
    if not choices:
        return exact(given, expected, choices)
    words = given.lower().split()
    of_expected = [each.split() for each in expected]
    return any(
        len(words) == len(each) and normalised(words[-1]) == normalised(each[-1]) for each in of_expected
    )


def letter(given: str, expected: Sequence[str], choices: Sequence[str]) -> bool:
    """expected: a letter. The answer tells it (`told_letter`), or begins with it."""
    return (told_letter(given, choices) or leading_letter(given, choices)) in expected


def mmvp(given: str, expected: Sequence[str], choices: Sequence[str]) -> bool:
    """The letter that the answer tells, or else what lmms-eval finds in it.

    For MMVP's own figures a language model reads the answers.
    """
    return (told_letter(given, choices) or mmvp_letter(given)) in expected


def cv_bench(given: str, expected: Sequence[str], choices: Sequence[str]) -> bool:
    """The letter that the answer tells, or else the first letter in it, as lmms-eval and
    Cambrian-1's code have it."""
    return (told_letter(given, choices) or cv_bench_letter(given)) in expected


def mmbench(given: str, expected: Sequence[str], choices: Sequence[str]) -> bool:
    """The letter that the answer tells, or else what MMBench's rules and lmms-eval's find in it.

    They know four choices; with more it is `letter`. MMBench's leaderboard asks a language model
    about answers that the rules leave open.
    """
    if len(choices) > 4:
        return letter(given, expected, choices)
    return (told_letter(given, choices) or mmbench_letter(given, choices)) in expected


def yes_no(given: str, expected: Sequence[str], choices: Sequence[str]) -> bool:
    """POPE's parse of the answer is the expected one of yes and no."""
    return pope_parse(given) == expected[0]


def pope_parse(given: str) -> str:
    """A "no" where the first sentence has the word No, no or not; else "yes", whatever was said.

    So does the script of POPE's authors (Li et al. 2023), on which published figures rest: "NO",
    "No!" and no answer at all are a yes. lmms-eval 0.7.3 knows "yes" and "no" alone, in any case,
    and counts all else as wrong.
    """
    sentence = given.partition(".")[0].replace(",", "")
    return "no" if {"No", "no", "not"} & set(sentence.split(" ")) else "yes"


def pope_figures(given: Sequence[str], labels: Sequence[str]) -> dict[str, float]:
    """POPE's figures beside accuracy, in percent: F1, precision and recall of yes, and how many
    answers are yes.

    (lmms-eval 0.7.3 prints the share of labels that are yes.) A share of nothing is 0.
    """
    said = [pope_parse(text) == "yes" for text in given]
    hits = sum(yes and label == "yes" for yes, label in zip(said, labels, strict=True))
    precision = hits / max(sum(said), 1)
    recall = hits / max(list(labels).count("yes"), 1)
    f1 = 2 * precision * recall / (precision + recall) if hits else 0.0
    figures = {"F1": f1, "precision": precision, "recall": recall, "yes ratio": sum(said) / len(said)}
    return {name: 100 * value for name, value in figures.items()}


def gqa(given: str, expected: Sequence[str], choices: Sequence[str]) -> bool:
    """The same text but for case and punctuation, as lmms-eval compares answers to GQA: an article
    counts."""
    bare = str.maketrans("", "", string.punctuation)
    return given.lower().translate(bare) in {each.lower().translate(bare) for each in expected}


def vqa(given: str, expected: Sequence[str], choices: Sequence[str]) -> float:
    """VQA accuracy of answers as VQAv2's evaluation processes them (`vqa_processed`)."""
    return vqa_accuracy(vqa_processed(given), [vqa_processed(each) for each in expected])


def textvqa(given: str, expected: Sequence[str], choices: Sequence[str]) -> float:
    """VQA accuracy of answers as TextVQA's evaluation processes them (`textvqa_processed`)."""
    return vqa_accuracy(textvqa_processed(given), [textvqa_processed(each) for each in expected])


def vqa_accuracy(said: str, people: Sequence[str]) -> float:
    """min(1, people who said it / 3), averaged over the sets of all but one of the people (Antol et
    al. 2015)."""
    agreeing = list(people).count(said)
    without_one_of_them = agreeing * min(1.0, (agreeing - 1) / 3)
    without_another = (len(people) - agreeing) * min(1.0, agreeing / 3)
    return (without_one_of_them + without_another) / len(people)


def caption_words(text: str) -> list[str]:
    """Lower-case words without punctuation."""
    return re.findall(r"[a-z0-9']+", text.lower())


def cider_d(given: Sequence[str], references: Sequence[Sequence[str]], sigma: float = 6.0) -> list[float]:
    """CIDEr-D of each caption against its references (Vedantam et al. 2015, equations 1-4 and
    section 6), times 10; document frequencies from `references`.

    For n = 1..4: vectors of counts times log(images / images whose references have the n-gram);
    similarity of clipped vectors times exp(-(difference of lengths)^2 / (2 sigma^2)), averaged over
    references and n.
    """
    frequencies: Counter[tuple[str, ...]] = Counter()
    for of_image in references:
        frequencies.update({gram for text in of_image for gram in _grams(caption_words(text))})
    log_images = math.log(max(len(references), 1))
    scores = []
    for text, of_image in zip(given, references, strict=True):
        words = caption_words(text)
        vector = _weighted(words, frequencies, log_images)
        total = 0.0
        for reference in of_image:
            other_words = caption_words(reference)
            other = _weighted(other_words, frequencies, log_images)
            penalty = math.exp(-((len(words) - len(other_words)) ** 2) / (2 * sigma**2))
            total += penalty * sum(_clipped_cosine(vector[n], other[n]) for n in range(4)) / 4
        scores.append(10 * total / len(of_image))
    return scores


def _grams(words: Sequence[str]) -> list[tuple[str, ...]]:
    return [tuple(words[start : start + n]) for n in range(1, 5) for start in range(len(words) - n + 1)]


def _weighted(
    words: Sequence[str], frequencies: Counter, log_images: float
) -> list[dict[tuple[str, ...], float]]:
    """Of each n, n-gram -> count times inverse document frequency."""
    vectors: list[dict[tuple[str, ...], float]] = [{}, {}, {}, {}]
    for gram, count in Counter(_grams(words)).items():
        vectors[len(gram) - 1][gram] = count * (log_images - math.log(max(frequencies[gram], 1)))
    return vectors


def _clipped_cosine(one: dict[tuple[str, ...], float], other: dict[tuple[str, ...], float]) -> float:
    length = math.sqrt(sum(value**2 for value in one.values()) * sum(value**2 for value in other.values()))
    return (
        sum(min(value, other[gram]) * other[gram] for gram, value in one.items() if gram in other) / length
        if length
        else 0.0
    )
