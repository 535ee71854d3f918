"""Finds which of the lettered choices an answer means.

`stated_letter` finds a letter that is stated beyond doubt. The functions `*_letter` of a benchmark
read an answer as the benchmark's official code does.
"""

from __future__ import annotations

import re
import string
from collections.abc import Sequence

ARTICLES = {"a", "an", "the"}
DECORATION = string.whitespace + string.punctuation
LATEX_COMMAND = re.compile(r"\\(?:boxed|text|textbf|mathrm|mathbf)\b")
ANNOUNCEMENT = re.compile(
    r"\b(?:answer|option|choice)\**(?:\s+is\b|\s*:)[\s:*]*(?:(?:option|choice|letter)\s+)?", re.IGNORECASE
)
ANNOUNCED = re.compile(r"[^\w]*(?:\\boxed\{)?(?:a(?=[^\w\s]|\s*$)|[B-Zb-z]|A)(?![\w'’-])")
MARKED = re.compile(
    r"\\boxed\{(?:\\text\{)?\(?([A-Za-z])\)?\}|\*\*\(?([A-Za-z])\)?(?:[.:)]|\*\*)|\[([A-Za-z])\]"
)
LETTERED = re.compile(r"\W*[A-Za-z][.:,)\]*]")
LEADING = re.compile(r"\s*[(\[]?([A-Za-z])[)\]]?(?=$|[\s.:,)])")

# where lmms-eval 0.7.3 looks for the letter of MMVP, in this order, whatever the case
MMVP_PLACES = (
    r"^\(?([ab])\)?[.\s]",
    r"answer\s+is\s+\(?([ab])",
    r"option\s+\(?([ab])",
    r"([ab])\)?(?:\s|$)",
    r"^([ab])",
)

# what MMBench's evaluator lets stand around a letter that is a word of its own
MMBENCH_MARKS = ("{}.", "{},", "{}:", "{})", "{}).", "({})", "({}).", ":{}", ":{},", ":{}.", ":{})", ":{}).")
# how much lmms-eval 0.7.3 trusts a letter in each of these forms, and behind one of these phrases
MMBENCH_FORMS = {"({})": 6, "{}.": 5, "{}:": 4, "{})": 3, "{} ": 2}
AT_THE_START, AT_THE_END, AFTER_A_PHRASE, ANYWHERE = 10, 9, 7, 0
ANSWER_NAMES = (
    "answer",
    "correct answer",
    "best answer",
    "correct option",
    "best option",
    "choice",
    "correct choice",
)
PHRASES = (
    *map("the {} is".format, ANSWER_NAMES),
    *map("{} is".format, ANSWER_NAMES),
    *("i choose", "i select", "i pick", "my answer is", "my choice is"),
    *("옵션", "정답은", "답은", "답:", "答案是", "答案为", "选", "答えは"),
)


def normalise(text: str) -> str:
    """Lower case, without articles, double spaces and punctuation at the ends of words."""
    words = []
    for word in text.lower().split():
        bare = word.strip(string.punctuation)
        if bare and bare not in ARTICLES:
            words.append(bare)
    return " ".join(words)


def stated_letter(given: str, choices: Sequence[str]) -> str:
    """The letter that an answer states beyond doubt, or "".

    The first of these rules that applies decides:

    1. The answer is nothing but a letter, decorated or not ("B", "**B**", "[B]", "\\boxed{B}").
    2. It is the text of one choice and of no other, so that "A red cup" is not option A where a
       choice has this text.
    3. What follows the last "answer is" is one of these, or begins with a letter.
    4. One letter and no other is marked by \\boxed{}, ** or [] somewhere in the answer.

    A letter whose choice is missing or empty does not count.
    """
    announcements = list(ANNOUNCEMENT.finditer(given))
    announced = given[announcements[-1].end() :] if announcements else ""
    for text in (given, announced):
        letter = _bare_letter(text, choices) or _named_letter(text, choices)
        if letter:
            return letter
    found = ANNOUNCED.match(announced)
    if found and _is_choice(found[0][-1], choices):
        return found[0][-1].upper()
    marked = {next(filter(None, groups)).upper() for groups in MARKED.findall(given)}
    if len(marked) == 1 and _is_choice(min(marked), choices):
        return marked.pop()
    return ""


def leading_letter(given: str, choices: Sequence[str]) -> str:
    """The letter of a choice at the beginning of an answer, or "".

    It may be in brackets, and a space or punctuation follows it.
    """
    found = LEADING.match(given)
    return found[1].upper() if found and _is_choice(found[1], choices) else ""


def mmvp_letter(given: str) -> str:
    """A or B as lmms-eval 0.7.3 finds it in an answer to MMVP, or "".

    It finds one in most sentences: any word that ends in a or b counts, so that "The sea is calm"
    is A.
    """
    text = given.strip().lower()
    for place in MMVP_PLACES:
        found = re.search(place, text)
        if found:
            return found[1].upper()
    return ""


def cv_bench_letter(given: str) -> str:
    """The first letter behind brackets and spaces, or "".

    This is how lmms-eval 0.7.3 reads answers to CV-Bench. Of a sentence it is the first letter of
    the first word.
    """
    found = re.match(r"[(\s]*([a-z])", given, re.IGNORECASE)
    return found[1].upper() if found else ""


def mmbench_letter(given: str, choices: Sequence[str]) -> str:
    """The letter that lmms-eval 0.7.3 reads in an answer to MMBench without a language model
    (`mmbench_en_dev_static`), or "".

    MMBench's own rules come first: one capital letter that is a word, then one choice whose text
    the answer contains. Where these find nothing, the letter in the form that is trusted most is
    taken.
    """
    return _only_letter(given) or _contained_choice(given, choices) or _most_trusted_letter(given, choices)


def letters_of(choices: Sequence[str]) -> str:
    """The letters of the choices that are not empty."""
    return "".join(letter for letter, choice in zip(string.ascii_uppercase, choices, strict=False) if choice)


def _is_choice(letter: str, choices: Sequence[str]) -> bool:
    return letter.upper() in letters_of(choices)


def _bare_letter(text: str, choices: Sequence[str]) -> str:
    bare = LATEX_COMMAND.sub("", text).strip(DECORATION)
    return bare.upper() if len(bare) == 1 and _is_choice(bare, choices) else ""


def _named_letter(text: str, choices: Sequence[str]) -> str:
    """The letter of the one choice whose text this is, or "".

    In "A. red cup" the A is a letter, not an article.
    """
    answer = normalise(text)
    if LETTERED.match(text) or not answer:
        return ""
    normalised_choices = list(map(normalise, choices))
    if normalised_choices.count(answer) != 1:
        return ""
    return string.ascii_uppercase[normalised_choices.index(answer)]


def _only_letter(given: str) -> str:
    """The one letter that is a word, bare or with the same marks around it, or "".

    An "A" among more than three words is an article.
    """
    words = given.split()
    alone = _letters_among(words, "{}")
    if len(alone) == 1 and not (alone == ["A"] and len(words) > 3):
        return alone[0]
    for mark in MMBENCH_MARKS:
        found = _letters_among(words, mark)
        if len(found) == 1:
            return found[0]
    return ""


def _letters_among(words: Sequence[str], mark: str) -> list[str]:
    """Those of A to E that are a word when they are written as `mark` says."""
    return [letter for letter in "ABCDE" if mark.format(letter) in words]


def _contained_choice(given: str, choices: Sequence[str]) -> str:
    """The letter of the one choice whose text the answer contains, or ""."""
    text = given.lower()
    contained = []
    for letter, choice in zip(string.ascii_uppercase, choices, strict=False):
        if choice and choice.lower() in text:
            contained.append(letter)
    return contained[0] if len(contained) == 1 else ""


def _most_trusted_letter(given: str, choices: Sequence[str]) -> str:
    """The letter of a choice in the form that is trusted most, or "".

    The last of several letters in the same form is taken; without a known form the last letter.
    """
    letters = letters_of(choices)
    text = f" {_without_end_marks(given)} "
    found = []
    for letter in letters:
        found += _trusted_places(text, letter)
    if not found:
        for letter in letters:
            if letter in text:
                found.append((ANYWHERE, text.rfind(letter), letter))
    return max(found)[2] if found else ""


def _without_end_marks(given: str) -> str:
    stripped = given.strip()
    for mark in ",.!?;:'\"":
        stripped = stripped.strip(mark)
    return stripped.strip()


def _trusted_places(text: str, letter: str) -> list[tuple[int, int, str]]:
    """(trust, position, letter) for each form in which the letter stands in the text.

    text: the answer with one space on both sides.
    """
    places = []
    for form, trust in MMBENCH_FORMS.items():
        places.append((trust, text.rfind(form.format(letter)), letter))
    for position in _positions_behind_phrases(text, letter):
        places.append((AFTER_A_PHRASE, position, letter))
    answer = text[1:-1]
    if re.match(rf"{letter}(?![^\W\d_])", answer):
        places.append((AT_THE_START, 0, letter))
    if re.search(rf"(?<![^\W\d_]){letter}$", answer):
        places.append((AT_THE_END, len(text) - 1, letter))
    return [place for place in places if place[1] >= 0]


def _positions_behind_phrases(text: str, letter: str) -> list[int]:
    """The position of the letter behind each phrase in the text, -1 where it does not follow."""
    lower = text.lower()
    positions = []
    for phrase in PHRASES:
        if phrase in lower:
            positions.append(text.find(letter, lower.find(phrase) + len(phrase)))
    return positions
