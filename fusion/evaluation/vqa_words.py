"""Processes answers as VQA's official evaluation does before it compares them.

It changes punctuation, numbers that are written as words, articles and contractions. The facts
(which marks, words and contractions) are those of the official VQA evaluation (Antol et al. 2015),
as lmms-eval 0.7.3 carries them.
"""

from __future__ import annotations

import re

ARTICLES = {"a", "an", "the"}
NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
NUMBERS = {"none": "0"} | {word: str(number) for number, word in enumerate(NUMBER_WORDS)}
MARKS = ';/[]"{}()=+\\_-><@`,?!'
COMMA_IN_NUMBER = re.compile(r"(?<=\d),+(?=\d)")
PERIOD = re.compile(r"\.(?!\d)")
MOST_PERIODS = 32  # the official call gives a flag of this value where a count belongs

# each is also known without one of its apostrophes: "couldn'tve" and "couldnt've" are
# "couldn't've", "couldntve" is not
CONTRACTED = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't
not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll
somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd
there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll
what're what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's
won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""


def contractions() -> dict[str, str]:
    """A table from what is written to what is compared.

    One entry of the published table is the wrong way round, and it is kept so.
    """
    table = {"somebody'd": "somebodyd"}
    for word in CONTRACTED.split():
        for at, sign in enumerate(word):
            if sign == "'":
                table[word[:at] + word[at + 1 :]] = word
    return table


CONTRACTIONS = contractions()


def process_vqa_answer(answer: str) -> str:
    """An answer in the form in which VQAv2 compares it."""
    text = answer.replace("\n", " ").replace("\t", " ").strip()
    words = []
    for word in _remove_punctuation(text).lower().split():
        word = NUMBERS.get(word, word)
        if word not in ARTICLES:
            words.append(CONTRACTIONS.get(word, word))
    return " ".join(words)


def process_textvqa_answer(answer: str) -> str:
    """An answer in the form in which TextVQA compares it.

    Commas and question marks are removed first, and a possessive 's becomes a word.
    """
    text = answer.lower().replace(",", "").replace("?", "").replace("'s", " 's")
    return process_vqa_answer(text)


def _remove_punctuation(text: str) -> str:
    """Removes a mark that is beside a space somewhere in the text, and every mark where a number has
    a comma.

    Other marks become spaces. Periods are removed unless a digit follows.
    """
    in_number = COMMA_IN_NUMBER.search(text) is not None
    bare = text
    for mark in MARKS:
        beside_space = f"{mark} " in text or f" {mark}" in text
        bare = bare.replace(mark, "" if beside_space or in_number else " ")
    return PERIOD.sub("", bare, count=MOST_PERIODS)
