"""Benchmarks of vision-language models, from files in the formats in which they are published;
`open_task` opens these and conversations.

cv_bench:GLOB              parquet of nyu-visionx/CV-Bench: question, choices, answer "(A)", type,
task, source, image mmvp:FOLDER                Questions.csv with the columns Index (the released
file has lndex), Question, Options
                           ("(a) Open (b) Closed"), Correct Answer ("(a)"), and MMVP Images/1.jpg
                           ...; right is a pair
pope:FILE?images=FOLDER    JSONL of image ("1.jpg"), text, label ("yes" or "no"), and question_id
gqa:FILE?images=FOLDER     JSON of id -> question, answer, imageId; one word or phrase mmbench:FILE
TSV with base64 images: question, A, B, C, D and more, answer, category, hint; rows whose
                           index differs by whole millions are one question
captions:FILE?images=...   JSON of COCO captions (images, annotations); CIDEr-D
vqa:FILE?annotations=FILE&images=FOLDER    VQAv2's two JSON files: questions; answers of ten people
each vqa:FILE?images=FOLDER     or a plain JSON list of question, image, answers of several people
textvqa:FILE?images=FOLDER TextVQA_0.5.1_val.json: data, a list of question, image_id, answers of
ten people
"""

from __future__ import annotations

import base64
import binascii
import re
import string
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from fusion.conversations.conversation import BadRow, decoded
from fusion.conversations.sources import open_table
from fusion.evaluation import grading as vlm_grading
from fusion.evaluation.benchmark_files import (
    FETCH_AGAIN,
    OWN_FILE,
    file_image,
    items_field,
    json_lines,
    parsed,
    read_text,
    right_letter,
    shown,
    table_rows,
    text_field,
    whole_number,
)
from fusion.evaluation.tasks import PLAIN_PROMPT, Question, Task, conversations_task
from vision_core.conversation_kinds import CONVERSATION_KINDS, parse_conversations
from vision_core.errors import UserError

OMNI3D = "Omni3D"
LETTER_PROMPT = "{question}\n{options}\nAnswer with the letter of the right choice."
WORD_PROMPT = "{question}\nAnswer with one word or a short phrase."
YES_NO_PROMPT = "{question}\nAnswer with yes or no."
DESCRIBE = "Describe the picture in one sentence."
MMVP_INDEX = ("lndex", "Index")  # the first is the spelling of the released file
NO_ANSWERS = "take the file with answers, the server alone knows those of the test files"
LONGEST_INDEX = 64  # what is longer in MMBench's column of images is an image


def cv_bench(name: str, where: Path) -> Task:
    """Raises UserError for what is no such table, BadRow for a row of it."""
    import datasets

    rows = open_table("parquet", str(where), {})
    columns = ("question", "choices", "answer", "type", "source", "image")
    missing = [column for column in columns if column not in rows.column_names]
    if missing:
        raise UserError(f"{where} has no column {missing[0]!r}; {OWN_FILE}")
    encoded = rows.cast_column("image", datasets.Image(decode=False))
    questions = []
    for number, row in enumerate(rows.remove_columns("image")):
        at = f"{where}, row {number + 1}"
        choices = tuple(str(each) for each in items_field(row, "choices", at))
        expected = right_letter(text_field(row, "answer", at), choices, at)
        group = OMNI3D if text_field(row, "type", at) == "3D" else text_field(row, "source", at)
        image = _table_image(encoded, number, at)
        questions.append(Question(at, text_field(row, "question", at), (expected,), image, choices, group))
    return Task(name, questions, LETTER_PROMPT, vlm_grading.cv_bench, weights=cv_bench_weights)


def cv_bench_weights(groups: Collection[str]) -> dict[str, float]:
    """((ADE20K + COCO) / 2 + Omni3D) / 2, as published; of a file with one half alone, that
    half."""
    halves = {
        "2D": [name for name in groups if name != OMNI3D],
        "3D": [name for name in groups if name == OMNI3D],
    }
    present = [half for half in halves.values() if half]
    return {name: 1 / len(present) / len(half) for half in present for name in half}


def mmvp(name: str, where: Path) -> Task:
    """Right is a pair: questions 1 and 2, 3 and 4, ... by their index."""
    file, questions = where / "Questions.csv", []
    for at, row in table_rows(file, ",", "Question", "Options", "Correct Answer"):
        index = whole_number(
            row, next((spelling for spelling in MMVP_INDEX if spelling in row), MMVP_INDEX[0]), at
        )
        options = re.split(r"\([a-z]\)", text_field(row, "Options", at))
        choices = tuple(option.strip() for option in options if option.strip())
        expected = right_letter(text_field(row, "Correct Answer", at), choices, at)
        image = file_image(where / "MMVP Images", f"{index}.jpg", at)
        pair = str((index - 1) // 2)
        questions.append(
            Question(at, text_field(row, "Question", at), (expected,), image, choices, bundle=pair)
        )
    sizes = Counter(question.bundle for question in questions)
    alone = next((question for question in questions if sizes[question.bundle] != 2), None)
    if alone is not None:
        raise BadRow(f"{alone.where}: the question has no other to be a pair with; {OWN_FILE}")
    return Task(name, questions, LETTER_PROMPT, vlm_grading.mmvp)


def pope(name: str, where: Path, images: str | None = None) -> Task:
    """Yes or no, with F1, precision, recall and the share of yes beside accuracy."""
    questions = []
    for at, row in json_lines(where):
        image = file_image(Path(images or where.parent), text_field(row, "image", at), at)
        label = text_field(row, "label", at).strip().lower()
        if label not in ("yes", "no"):
            raise BadRow(f"{at}: the label {shown(label)} is neither yes nor no; {FETCH_AGAIN}")
        questions.append(Question(at, text_field(row, "text", at), (label,), image, ("yes", "no")))
    return Task(name, questions, YES_NO_PROMPT, vlm_grading.yes_no, figures=vlm_grading.pope_figures)


def gqa(name: str, where: Path, images: str | None = None) -> Task:
    questions = []
    for number, row in parsed(read_text(where), str(where), dict).items():
        at = f"{where}, question {number}"
        image = file_image(Path(images or where.parent), f"{text_field(row, 'imageId', at)}.jpg", at)
        questions.append(
            Question(at, text_field(row, "question", at), (text_field(row, "answer", at),), image)
        )
    return Task(name, questions, WORD_PROMPT, vlm_grading.gqa)


def mmbench(name: str, where: Path) -> Task:
    """Circular where the file has its questions with their choices turned round: right only if
    every turn is.

    Choices are the columns A, B, C, ... as far as they go. An empty one is not shown, and the
    others keep their letters.
    """
    kept: dict[str, str] = {}
    questions = []
    for at, row in table_rows(where, "\t", "index", "question", "A", "answer", "image"):
        index = whole_number(row, "index", at)
        base = str(index % 1_000_000)
        encoded = _mmbench_image(row, str(index), base, kept, at)
        text = " ".join(part for part in (row.get("hint"), text_field(row, "question", at)) if part)
        choices = _mmbench_choices(row)
        answer = text_field(row, "answer", at, NO_ANSWERS)
        expected = right_letter(answer, choices, at)
        image = _base64_image(encoded, at)
        questions.append(Question(at, text, (expected,), image, choices, row.get("category") or "all", base))
    return Task(name, questions, LETTER_PROMPT, vlm_grading.mmbench)


def captions(name: str, where: Path, images: str | None = None) -> Task:
    table = parsed(read_text(where), str(where), dict)
    of_image: dict[str, list[str]] = {}
    for number, note in enumerate(items_field(table, "annotations", str(where)), start=1):
        at = f"{where}, annotation {number}"
        of_image.setdefault(text_field(note, "image_id", at), []).append(text_field(note, "caption", at))
    questions = []
    for number, row in enumerate(items_field(table, "images", str(where)), start=1):
        at = f"{where}, image {number}"
        image_id = text_field(row, "id", at)
        if image_id in of_image:
            image = file_image(Path(images or where.parent), text_field(row, "file_name", at), at)
            questions.append(Question(at, DESCRIBE, tuple(of_image[image_id]), image))
    return Task(name, questions, PLAIN_PROMPT, None, max_new_tokens=40)


def vqa(name: str, where: Path, images: str | None = None, annotations: str | None = None) -> Task:
    """VQAv2's own two files, or one list with the answers in it."""
    folder = Path(images or where.parent)
    rows = _vqav2_rows(where, Path(annotations)) if annotations else _plain_vqa_rows(where)
    questions = [_vqa_question(at, row, folder) for at, row in rows]
    return Task(name, questions, WORD_PROMPT, vlm_grading.vqa)


def textvqa(name: str, where: Path, images: str | None = None) -> Task:
    """TextVQA's own file; its test file has no answers."""
    folder = Path(images or where.parent)
    rows = items_field(parsed(read_text(where), str(where), dict), "data", str(where))
    questions = []
    for number, row in enumerate(rows, start=1):
        at = f"{where}, row {number}"
        file = f"{text_field(row, 'image_id', at)}.jpg"
        questions.append(_vqa_question(at, {**row, "image": file}, folder))
    return Task(name, questions, WORD_PROMPT, vlm_grading.textvqa)


# how each is read, and the names of its options
BENCHMARKS: dict[str, tuple[Callable[..., Task], set[str]]] = {
    "cv_bench": (cv_bench, set()),
    "mmvp": (mmvp, set()),
    "pope": (pope, {"images"}),
    "gqa": (gqa, {"images"}),
    "mmbench": (mmbench, set()),
    "captions": (captions, {"images"}),
    "vqa": (vqa, {"images", "annotations"}),
    "textvqa": (textvqa, {"images"}),
}


def _plain_vqa_rows(where: Path) -> list[tuple[str, Any]]:
    text = read_text(where)
    if text.lstrip().startswith("{"):
        cure = f"VQAv2's questions need annotations=FILE beside them, TextVQA's file is textvqa:{where}"
        raise UserError(f"{where} is no list of questions; {cure}")
    return [
        (f"{where}, row {number}", row) for number, row in enumerate(parsed(text, str(where), list), start=1)
    ]


def _vqav2_rows(where: Path, annotations: Path) -> list[tuple[str, Any]]:
    """The questions, each with the answers that the other file has for it and the name that COCO
    gives its image."""
    table = parsed(read_text(where), str(where), dict)
    split = text_field(table, "data_subtype", str(where))
    answers = {}
    of_file = parsed(read_text(annotations), str(annotations), dict)
    for number, note in enumerate(items_field(of_file, "annotations", str(annotations)), start=1):
        at = f"{annotations}, annotation {number}"
        answers[text_field(note, "question_id", at)] = items_field(note, "answers", at)
    rows = []
    for number, row in enumerate(items_field(table, "questions", str(where)), start=1):
        at = f"{where}, question {number}"
        question = text_field(row, "question_id", at)
        if question not in answers:
            cure = "name the annotations of the same split"
            raise BadRow(f"{at}: {annotations} has no answers to question {question}; {cure}")
        file = f"COCO_{split}_{whole_number(row, 'image_id', at):012d}.jpg"
        rows.append((at, {**row, "image": file, "answers": answers[question]}))
    return rows


def _vqa_question(at: str, row: Any, folder: Path) -> Question:
    image = file_image(folder, text_field(row, "image", at), at)
    people = items_field(row, "answers", at)
    if len(people) < 2:
        cure = "VQA accuracy compares those of several people, ask questions with one as llava:FILE"
        raise BadRow(f"{at}: there is one answer; {cure}")
    return Question(at, text_field(row, "question", at), tuple(_said(each, at) for each in people), image)


def _said(person: Any, at: str) -> str:
    """What one of the people answered, which may be nothing."""
    answer = person.get("answer") if isinstance(person, Mapping) else person
    if not isinstance(answer, (str, int, float)):
        raise BadRow(f"{at}: an answer is no text but {shown(answer)}; {FETCH_AGAIN}")
    return str(answer)


def _mmbench_choices(row: Mapping[str, str]) -> tuple[str, ...]:
    """The columns A, B, C, ... up to the last with something in it."""
    columns = []
    for letter in string.ascii_uppercase:
        if letter not in row:
            break
        columns.append((row[letter] or "").strip())
    while columns and not columns[-1]:
        columns.pop()
    return tuple(columns)


def _mmbench_image(row: Mapping[str, str], index: str, base: str, kept: dict[str, str], at: str) -> str:
    """The image of a row in base64, or that of the earlier row that it names or is a turn of.

    kept: the images so far, by index; that of this row is put there.
    """
    given = row["image"] or ""
    if len(given) > LONGEST_INDEX:
        kept[index] = given
    encoded = kept.get(index) or kept.get(given) or kept.get(base)
    if encoded is None:
        raise BadRow(
            f"{at}: there is no image, and none of a row with index {given or base} before it; {FETCH_AGAIN}"
        )
    return encoded


def _base64_image(encoded: str, at: str) -> Callable[[], list[Tensor]]:
    def read() -> list[Tensor]:
        try:
            data = base64.b64decode(encoded)
        except binascii.Error as error:
            raise BadRow(f"{at}: the image is no base64 ({error}); {FETCH_AGAIN}") from None
        return [decoded(data, at)]

    return read


def _table_image(table: Any, number: int, at: str) -> Callable[[], list[Tensor]]:
    def read() -> list[Tensor]:
        data = table[number]["image"]["bytes"]
        if not data:
            raise BadRow(f"{at}: there is no image; {FETCH_AGAIN}")
        return [decoded(data, at)]

    return read


def open_task(text: str, limit: int | None = None) -> Task:
    """The task that `text` names, or its first `limit` questions.

    Raises UserError for what cannot be opened, BadRow for a row that is no question.
    """
    known = {kind: options for kind, (_, options) in BENCHMARKS.items()} | CONVERSATION_KINDS
    kind, where, options = parse_conversations(text, known, "task")
    task = (
        conversations_task(text, limit)
        if kind in CONVERSATION_KINDS
        else BENCHMARKS[kind][0](text, Path(where), **options)
    )
    if not task.questions:
        raise UserError(f"{text} has no questions")
    return replace(task, questions=task.questions[:limit])
