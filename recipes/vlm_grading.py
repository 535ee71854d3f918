"""Whether an answer is right: one pinned way for each kind of question, printed with every score."""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Sequence

ARTICLES = {"a", "an", "the"}


def normalised(text: str) -> str:
    """Lower case, without punctuation at its ends, articles and double spaces."""
    words = text.lower().split()
    return " ".join(word for word in (each.strip(string.punctuation) for each in words) if word and word not in ARTICLES)


def exact(given: str, expected: Sequence[str], choices: Sequence[str]) -> bool:
    """The normalised answer is one of the normalised expected ones."""
    return normalised(given) in {normalised(each) for each in expected}


def last_word(given: str, expected: Sequence[str], choices: Sequence[str]) -> bool:
    """As `exact`; but where `choices` say what the last word may be, an answer of as many words that ends alike: before it a model reads off aloud."""
    if not choices:
        return exact(given, expected, choices)
    words = given.lower().split()
    return any(len(words) == len(each.split()) and normalised(words[-1]) == normalised(each.split()[-1]) for each in expected)


def letter(given: str, expected: Sequence[str], choices: Sequence[str]) -> bool:
    """expected: a letter. The answer begins with it, in brackets or not, alone or before punctuation; or it is the text of that choice and of no other."""
    found = re.match(r"\s*\(?([A-Za-z])\)?(?=$|[\s.:,)])", given)
    if found and ord(found[1].upper()) - ord("A") < len(choices):
        return found[1].upper() in expected
    named = [number for number, choice in enumerate(choices) if normalised(choice) == normalised(given)]
    return len(named) == 1 and chr(ord("A") + named[0]) in expected


def yes_no(given: str, expected: Sequence[str], choices: Sequence[str]) -> bool:
    """The first word is the expected one of yes and no."""
    words = normalised(given).split()
    return bool(words) and words[0].strip(string.punctuation) == normalised(expected[0])


def vqa(given: str, expected: Sequence[str], choices: Sequence[str]) -> float:
    """VQA accuracy: min(1, people who said it / 3), averaged over the sets of all but one of the people (Antol et al. 2015; the official average)."""
    people = [normalised(each) for each in expected]
    said = normalised(given)
    left_out = [people[:number] + people[number + 1 :] for number in range(len(people))]
    return sum(min(1.0, others.count(said) / 3) for others in left_out) / len(people)


def caption_words(text: str) -> list[str]:
    """Lower-case words without punctuation."""
    return re.findall(r"[a-z0-9']+", text.lower())


def cider_d(given: Sequence[str], references: Sequence[Sequence[str]], sigma: float = 6.0) -> list[float]:
    """CIDEr-D of each caption against its references (Vedantam et al. 2015, equations 1-4 and section 6), times 10; document frequencies from `references`.

    For n = 1..4: vectors of counts times log(images / images whose references have the n-gram); similarity of clipped vectors times
    exp(-(difference of lengths)^2 / (2 sigma^2)), averaged over references and n.
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


def _weighted(words: Sequence[str], frequencies: Counter, log_images: float) -> list[dict[tuple[str, ...], float]]:
    """Of each n, n-gram -> count times inverse document frequency."""
    vectors: list[dict[tuple[str, ...], float]] = [{}, {}, {}, {}]
    for gram, count in Counter(_grams(words)).items():
        vectors[len(gram) - 1][gram] = count * (log_images - math.log(max(frequencies[gram], 1)))
    return vectors


def _clipped_cosine(one: dict[tuple[str, ...], float], other: dict[tuple[str, ...], float]) -> float:
    length = math.sqrt(sum(value**2 for value in one.values()) * sum(value**2 for value in other.values()))
    return sum(min(value, other[gram]) * other[gram] for gram, value in one.items() if gram in other) / length if length else 0.0
