"""Which of its lettered choices an answer means: what it tells beyond doubt, or what benchmarks
take it for."""

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
    *(f"{article}{name} is" for name in ANSWER_NAMES for article in ("the ", "")),
    *("i choose", "i select", "i pick", "my answer is", "my choice is"),
    *("옵션", "정답은", "답은", "답:", "答案是", "答案为", "选", "答えは"),
)


def normalised(text: str) -> str:
    """Lower case, without punctuation at its ends, articles and double spaces."""
    words = [word.strip(string.punctuation) for word in text.lower().split()]
    return " ".join(word for word in words if word and word not in ARTICLES)


def told_letter(given: str, choices: Sequence[str]) -> str:
    """The letter that an answer tells beyond doubt, or "".

    The first of these that holds: the answer is nothing but a letter, decorated or not ("B",
    "**B**", "[B]", "\\boxed{B}"); it is the text of one choice and of no other, so that "A red cup"
    is not option A where a choice says so; what follows the last "answer is" is one of these, or
    begins with a letter; one letter and no other is marked by \\boxed{}, ** or [] somewhere in it.
    A letter that has no choice, or an empty one, does not count.
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
    return marked.pop() if len(marked) == 1 and _is_choice(min(marked), choices) else ""


def leading_letter(given: str, choices: Sequence[str]) -> str:
    """The letter of a choice that an answer begins with, in brackets or not, before a space or
    punctuation; or ""."""
    found = LEADING.match(given)
    return found[1].upper() if found and _is_choice(found[1], choices) else ""


def mmvp_letter(given: str) -> str:
    """A or B as lmms-eval 0.7.3 finds it in an answer to MMVP, or "".

    It finds one in most sentences: any word that ends in a or b counts, so that "The sea is calm"
    is A.
    """
    text = given.strip().lower()
    for place in MMVP_PLACES:
        if found := re.search(place, text):
            return found[1].upper()
    return ""


def cv_bench_letter(given: str) -> str:
    """The first letter behind brackets and spaces, or "", as lmms-eval 0.7.3 reads answers to
    CV-Bench.

    Of a sentence it is the first letter of the first word.
    """
    found = re.match(r"[(\s]*([a-z])", given, re.IGNORECASE)
    return found[1].upper() if found else ""


def mmbench_letter(given: str, choices: Sequence[str]) -> str:
    """As lmms-eval 0.7.3 reads answers to MMBench without a language model
    (`mmbench_en_dev_static`), or "".

    First by MMBench's own rules: one capital letter that is a word, then one choice whose text the
    answer contains. Where these say nothing, it is the letter in the form that is trusted most.
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
    """The letter of the one choice whose text this is. In "A. red cup" the A is a letter, not an
    article."""
    said = "" if LETTERED.match(text) else normalised(text)
    named = [number for number, choice in enumerate(choices) if said and normalised(choice) == said]
    return string.ascii_uppercase[named[0]] if len(named) == 1 else ""


def _only_letter(given: str) -> str:
    """The one letter that is a word, bare or with the same marks around it; an "A" among four words
    is an article."""
    words = given.split()
    alone = [letter for letter in "ABCDE" if letter in words]
    if len(alone) == 1 and not (alone == ["A"] and len(words) > 3):
        return alone[0]
    for mark in MMBENCH_MARKS:
        found = [letter for letter in "ABCDE" if mark.format(letter) in words]
        if len(found) == 1:
            return found[0]
    return ""


def _contained_choice(given: str, choices: Sequence[str]) -> str:
    contained = [
        letter for letter in letters_of(choices) if choices[ord(letter) - ord("A")].lower() in given.lower()
    ]
    return contained[0] if len(contained) == 1 else ""


def _most_trusted_letter(given: str, choices: Sequence[str]) -> str:
    """The letter of a choice whose form is trusted most, of several the last; without a known form
    the last letter."""
    stripped = given.strip()
    for mark in ",.!?;:'\"":
        stripped = stripped.strip(mark)
    stripped = stripped.strip()
    text = f" {stripped} "
    places: list[tuple[int, int, str]] = []  # trust, position, letter
    for letter in letters_of(choices):
        places += [(trust, text.rfind(form.format(letter)), letter) for form, trust in MMBENCH_FORMS.items()]
        places += [(AFTER_A_PHRASE, position, letter) for position in _behind_phrases(text, letter)]
        if re.match(rf"{letter}(?![^\W\d_])", stripped):
            places.append((AT_THE_START, 0, letter))
        if re.search(rf"(?<![^\W\d_]){letter}$", stripped):
            places.append((AT_THE_END, len(text) - 1, letter))
    found = [place for place in places if place[1] >= 0]
    if not found:
        found = [(ANYWHERE, text.rfind(letter), letter) for letter in letters_of(choices) if letter in text]
    return max(found)[2] if found else ""


def _behind_phrases(text: str, letter: str) -> list[int]:
    """Where the letter follows each phrase that stands in the text, -1 where it does not."""
    lower = text.lower()
    return [text.find(letter, lower.find(phrase) + len(phrase)) for phrase in PHRASES if phrase in lower]
