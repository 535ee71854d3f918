"""The graders: one pinned way to decide whether an answer is right for each kind of question.

The name of the grader is printed with every score. The graders of published benchmarks give what
the benchmark's own code or lmms-eval's gives: tests/fusion/evaluation/official_grades.json holds its
grades of some hundred answers each. One thing is added where a letter is asked for: a letter that
the answer states beyond doubt (`stated_letter`) is believed, also where that code reads it wrongly
or not at all.

A grader takes the given answer, the expected answers and the choices; it returns points from 0 to 1.
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
    normalise,
    stated_letter,
)
from fusion.evaluation.vqa_words import process_textvqa_answer, process_vqa_answer

NGram = tuple[str, ...]


def exact(given: str, expected: Sequence[str], choices: Sequence[str]) -> bool:
    """The normalised answer is one of the normalised expected ones."""
    return normalise(given) in set(map(normalise, expected))


def last_word(given: str, expected: Sequence[str], choices: Sequence[str]) -> bool:
    """Like `exact`, but with choices only the last word of the answer counts.

    The answer must have as many words as an expected one; those in front of the last are steps
    towards the answer.
    """
    if not choices:
        return exact(given, expected, choices)
    words = given.lower().split()
    for answer in expected:
        expected_words = answer.split()
        same_length = len(words) == len(expected_words)
        if same_length and normalise(words[-1]) == normalise(expected_words[-1]):
            return True
    return False


def letter(given: str, expected: Sequence[str], choices: Sequence[str]) -> bool:
    """The answer states the expected letter (`stated_letter`), or begins with it."""
    return (stated_letter(given, choices) or leading_letter(given, choices)) in expected


def mmvp(given: str, expected: Sequence[str], choices: Sequence[str]) -> bool:
    """The letter that the answer states, or else what lmms-eval finds in it.

    For MMVP's own figures a language model reads the answers.
    """
    return (stated_letter(given, choices) or mmvp_letter(given)) in expected


def cv_bench(given: str, expected: Sequence[str], choices: Sequence[str]) -> bool:
    """The letter that the answer states, or else the first letter in it.

    The latter is what lmms-eval and Cambrian-1's code take.
    """
    return (stated_letter(given, choices) or cv_bench_letter(given)) in expected


def mmbench(given: str, expected: Sequence[str], choices: Sequence[str]) -> bool:
    """The letter that the answer states, or else what MMBench's rules and lmms-eval's find in it.

    These rules know four choices; a question with more is graded by `letter`. MMBench's leaderboard
    asks a language model about answers that the rules leave open.
    """
    if len(choices) > 4:
        return letter(given, expected, choices)
    return (stated_letter(given, choices) or mmbench_letter(given, choices)) in expected


def yes_no(given: str, expected: Sequence[str], choices: Sequence[str]) -> bool:
    """POPE's parse of the answer is the expected one of yes and no."""
    return pope_parse(given) == expected[0]


def pope_parse(given: str) -> str:
    """Reads "no" where the first sentence has the word No, no or not; otherwise "yes".

    This is the rule of the script of POPE's authors (Li et al. 2023), on which published figures
    rest: "NO", "No!" and no answer at all count as yes. lmms-eval 0.7.3 knows only "yes" and "no",
    in any case, and counts everything else as wrong.
    """
    sentence = given.partition(".")[0].replace(",", "")
    return "no" if {"No", "no", "not"} & set(sentence.split(" ")) else "yes"


def pope_figures(given: Sequence[str], labels: Sequence[str]) -> dict[str, float]:
    """POPE's figures beside accuracy, in percent: F1, precision and recall of yes, and the share of
    answers that are yes.

    (lmms-eval 0.7.3 prints the share of labels that are yes.) A share of nothing is 0.
    """
    parsed = list(map(pope_parse, given))
    yes_count = parsed.count("yes")
    hits = list(zip(parsed, labels, strict=True)).count(("yes", "yes"))
    precision = hits / max(yes_count, 1)
    recall = hits / max(list(labels).count("yes"), 1)
    f1 = 0.0
    if hits:
        f1 = 2 * precision * recall / (precision + recall)
    return {
        "F1": 100 * f1,
        "precision": 100 * precision,
        "recall": 100 * recall,
        "yes ratio": 100 * (yes_count / len(parsed)),
    }


def gqa(given: str, expected: Sequence[str], choices: Sequence[str]) -> bool:
    """The same text but for case and punctuation, as lmms-eval compares answers to GQA.

    Articles count.
    """
    return _bare(given) in set(map(_bare, expected))


def _bare(text: str) -> str:
    """Lower case without punctuation."""
    return text.lower().translate(str.maketrans("", "", string.punctuation))


def vqa(given: str, expected: Sequence[str], choices: Sequence[str]) -> float:
    """VQA accuracy of answers as VQAv2's evaluation processes them (`process_vqa_answer`)."""
    return vqa_accuracy(process_vqa_answer(given), list(map(process_vqa_answer, expected)))


def textvqa(given: str, expected: Sequence[str], choices: Sequence[str]) -> float:
    """VQA accuracy of answers as TextVQA's evaluation processes them (`process_textvqa_answer`)."""
    return vqa_accuracy(process_textvqa_answer(given), list(map(process_textvqa_answer, expected)))


def vqa_accuracy(answer: str, people: Sequence[str]) -> float:
    """min(1, people who gave the answer / 3), averaged over the sets of all but one of the people
    (Antol et al. 2015)."""
    agreeing = list(people).count(answer)
    without_one_of_them = agreeing * min(1.0, (agreeing - 1) / 3)
    without_another = (len(people) - agreeing) * min(1.0, agreeing / 3)
    return (without_one_of_them + without_another) / len(people)


def caption_words(text: str) -> list[str]:
    """The words of a caption in lower case, without punctuation."""
    return re.findall(r"[a-z0-9']+", text.lower())


def cider_d(given: Sequence[str], references: Sequence[Sequence[str]], sigma: float = 6.0) -> list[float]:
    """CIDEr-D of each caption against its references (Vedantam et al. 2015, equations 1-4 and
    section 6), times 10; document frequencies are those of `references`.

    For n = 1..4: vectors of counts times log(images / images whose references have the n-gram);
    similarity of clipped vectors times exp(-(difference of lengths)^2 / (2 sigma^2)), averaged over
    references and n.
    """
    frequencies = _image_frequencies(references)
    log_images = math.log(max(len(references), 1))
    scores = []
    for text, references_of_image in zip(given, references, strict=True):
        words = caption_words(text)
        vectors = _ngram_vectors(words, frequencies, log_images)
        total = 0.0
        for reference in references_of_image:
            reference_words = caption_words(reference)
            reference_vectors = _ngram_vectors(reference_words, frequencies, log_images)
            penalty = math.exp(-((len(words) - len(reference_words)) ** 2) / (2 * sigma**2))
            total += penalty * sum(map(_clipped_cosine, vectors, reference_vectors)) / 4
        scores.append(10 * total / len(references_of_image))
    return scores


def _image_frequencies(references: Sequence[Sequence[str]]) -> Counter[NGram]:
    """For each n-gram, how many images have it in one of their references."""
    frequencies: Counter[NGram] = Counter()
    for references_of_image in references:
        ngrams_of_image: set[NGram] = set()
        for text in references_of_image:
            ngrams_of_image.update(_ngrams(caption_words(text)))
        frequencies.update(ngrams_of_image)
    return frequencies


def _ngrams(words: Sequence[str]) -> list[NGram]:
    """The n-grams of some words for n = 1..4."""
    ngrams: list[NGram] = []
    for n in range(1, 5):
        ngrams += [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]
    return ngrams


def _ngram_vectors(
    words: Sequence[str], frequencies: Counter[NGram], log_images: float
) -> list[dict[NGram, float]]:
    """For each n, the weight of each n-gram: its count times its inverse document frequency."""
    vectors: list[dict[NGram, float]] = [{}, {}, {}, {}]
    for ngram, count in Counter(_ngrams(words)).items():
        inverse_frequency = log_images - math.log(max(frequencies[ngram], 1))
        vectors[len(ngram) - 1][ngram] = count * inverse_frequency
    return vectors


def _clipped_cosine(one: dict[NGram, float], other: dict[NGram, float]) -> float:
    length = math.sqrt(sum(value**2 for value in one.values()) * sum(value**2 for value in other.values()))
    if not length:
        return 0.0
    products = []
    for ngram, value in one.items():
        if ngram in other:
            products.append(min(value, other[ngram]) * other[ngram])
    return sum(products) / length
