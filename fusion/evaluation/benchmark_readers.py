"""One reader for each published benchmark: from its own files to a `BenchmarkTask`.

Each reader takes the task's name, the path in it and its options. It raises UserError for a file
that is not the benchmark's, and BadRow, with file, row and cure, for a row that is broken.
The table of benchmarks: fusion/evaluation/benchmarks.py.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from fusion.conversations.conversation import BadRow, decode_row_image
from fusion.conversations.rows import CAPTION_INSTRUCTION
from fusion.conversations.tables import open_table
from fusion.evaluation import grading
from fusion.evaluation.benchmark_files import (
    FETCH_AGAIN,
    OWN_FILE,
    base64_image,
    file_image,
    items_field,
    parse_json_lines,
    parse_json_of_type,
    quote_value,
    read_text,
    right_letter,
    table_rows,
    text_field,
    whole_number_field,
)
from fusion.evaluation.tasks import PLAIN_PROMPT, BenchmarkQuestion, BenchmarkTask, ImageReading
from vision_core.errors import UserError

LETTER_PROMPT = "{question}\n{options}\nAnswer with the letter of the right choice."
WORD_PROMPT = "{question}\nAnswer with one word or a short phrase."
YES_NO_PROMPT = "{question}\nAnswer with yes or no."
NO_ANSWERS = "take the file with answers, the server alone knows those of the test files"

CV_BENCH_COLUMNS = ("question", "choices", "answer", "type", "source", "image")
OMNI3D = "Omni3D"
MMVP_INDEX = ("lndex", "Index")  # the first is the spelling of the released file
LONGEST_MMBENCH_INDEX = 64  # what is longer in MMBench's column of images is an image


def read_cv_bench(name: str, where: Path) -> BenchmarkTask:
    """CV-Bench: parquet with question, choices, answer "(A)", type, source and image."""
    import datasets

    rows = open_table("parquet", str(where), {})
    for column in CV_BENCH_COLUMNS:
        if column not in rows.column_names:
            raise UserError(f"{where} has no column {column!r}; {OWN_FILE}")
    undecoded = rows.cast_column("image", datasets.Image(decode=False))
    questions = []
    for number, row in enumerate(rows.remove_columns("image")):
        at = f"{where}, row {number + 1}"
        questions.append(_cv_bench_question(at, row, _table_image(undecoded, number, at)))
    return BenchmarkTask(name, questions, LETTER_PROMPT, grading.cv_bench, weights=cv_bench_weights)


def _cv_bench_question(at: str, row: Mapping[str, Any], images: ImageReading) -> BenchmarkQuestion:
    choices = tuple(map(str, items_field(row, "choices", at)))
    is_3d = text_field(row, "type", at) == "3D"
    return BenchmarkQuestion(
        where=at,
        text=text_field(row, "question", at),
        expected=(right_letter(text_field(row, "answer", at), choices, at),),
        images=images,
        choices=choices,
        group=OMNI3D if is_3d else text_field(row, "source", at),
    )


def cv_bench_weights(groups: Collection[str]) -> dict[str, float]:
    """The weight of each group: ((ADE20K + COCO) / 2 + Omni3D) / 2, as published.

    A file that has only the 2D or only the 3D half is scored by that half.
    """
    groups_2d = [name for name in groups if name != OMNI3D]
    groups_3d = [name for name in groups if name == OMNI3D]
    halves = list(filter(None, (groups_2d, groups_3d)))
    weights = {}
    for half in halves:
        for name in half:
            weights[name] = 1 / len(halves) / len(half)
    return weights


def _table_image(table: Any, number: int, at: str) -> ImageReading:
    def read() -> list[Tensor]:
        data = table[number]["image"]["bytes"]
        if not data:
            raise BadRow(f"{at}: there is no image; {FETCH_AGAIN}")
        return [decode_row_image(data, at)]

    return read


def read_mmvp(name: str, where: Path) -> BenchmarkTask:
    """MMVP: Questions.csv with Index (the released file has lndex), Question, Options
    "(a) Open (b) Closed" and Correct Answer "(a)"; images are MMVP Images/1.jpg and so on.

    A pair counts as right only together: questions 1 and 2, 3 and 4, ... by their index.
    """
    questions = []
    for at, row in table_rows(where / "Questions.csv", ",", "Question", "Options", "Correct Answer"):
        questions.append(_mmvp_question(at, row, where / "MMVP Images"))
    sizes = Counter(question.bundle for question in questions)
    for question in questions:
        if sizes[question.bundle] != 2:
            raise BadRow(f"{question.where}: the question has no other to be a pair with; {OWN_FILE}")
    return BenchmarkTask(name, questions, LETTER_PROMPT, grading.mmvp)


def _mmvp_question(at: str, row: Mapping[str, str], images: Path) -> BenchmarkQuestion:
    column = next((spelling for spelling in MMVP_INDEX if spelling in row), MMVP_INDEX[0])
    index = whole_number_field(row, column, at)
    options = map(str.strip, re.split(r"\([a-z]\)", text_field(row, "Options", at)))
    choices = tuple(filter(None, options))
    return BenchmarkQuestion(
        where=at,
        expected=(right_letter(text_field(row, "Correct Answer", at), choices, at),),
        images=file_image(images, f"{index}.jpg", at),
        text=text_field(row, "Question", at),
        choices=choices,
        bundle=str((index - 1) // 2),
    )


def read_pope(name: str, where: Path, images: str | None = None) -> BenchmarkTask:
    """POPE: JSONL of image "1.jpg", text and label "yes" or "no".

    F1, precision, recall and the share of yes are given beside accuracy.
    """
    folder = Path(images or where.parent)
    questions = []
    for at, row in parse_json_lines(where):
        image = file_image(folder, text_field(row, "image", at), at)
        label = text_field(row, "label", at).strip().lower()
        if label not in ("yes", "no"):
            raise BadRow(f"{at}: the label {quote_value(label)} is neither yes nor no; {FETCH_AGAIN}")
        text = text_field(row, "text", at)
        questions.append(BenchmarkQuestion(at, text, (label,), image, ("yes", "no")))
    return BenchmarkTask(name, questions, YES_NO_PROMPT, grading.yes_no, figures=grading.pope_figures)


def read_gqa(name: str, where: Path, images: str | None = None) -> BenchmarkTask:
    """GQA: JSON of id -> question, answer and imageId."""
    folder = Path(images or where.parent)
    questions = []
    for number, row in parse_json_of_type(read_text(where), str(where), dict).items():
        at = f"{where}, question {number}"
        image = file_image(folder, f"{text_field(row, 'imageId', at)}.jpg", at)
        text = text_field(row, "question", at)
        answer = text_field(row, "answer", at)
        questions.append(BenchmarkQuestion(at, text, (answer,), image))
    return BenchmarkTask(name, questions, WORD_PROMPT, grading.gqa)


def read_mmbench(name: str, where: Path) -> BenchmarkTask:
    """MMBench: TSV with index, hint, question, A, B, C and so on, answer, category and base64 image.

    Rows whose index differs by whole millions are one question with its choices in another order; it
    counts as right only if every order is answered rightly (circular evaluation).
    """
    encoded_images: dict[str, str] = {}
    questions = []
    for at, row in table_rows(where, "\t", "index", "question", "A", "answer", "image"):
        questions.append(_mmbench_question(at, row, encoded_images))
    return BenchmarkTask(name, questions, LETTER_PROMPT, grading.mmbench)


def _mmbench_question(at: str, row: Mapping[str, str], encoded_images: dict[str, str]) -> BenchmarkQuestion:
    index = whole_number_field(row, "index", at)
    base = str(index % 1_000_000)
    encoded = _mmbench_image(row, str(index), base, encoded_images, at)
    question = text_field(row, "question", at)
    hint = row.get("hint")
    choices = _mmbench_choices(row)
    return BenchmarkQuestion(
        where=at,
        text=f"{hint} {question}" if hint else question,
        expected=(right_letter(text_field(row, "answer", at, NO_ANSWERS), choices, at),),
        images=base64_image(encoded, at),
        choices=choices,
        group=row.get("category") or "all",
        bundle=base,
    )


def _mmbench_choices(row: Mapping[str, str]) -> tuple[str, ...]:
    """The columns A, B, C, ... up to the last that has a text.

    An empty one before it is not shown, and the others keep their letters.
    """
    choices = []
    for letter in string.ascii_uppercase:
        if letter not in row:
            break
        choices.append((row[letter] or "").strip())
    while choices and not choices[-1]:
        choices.pop()
    return tuple(choices)


def _mmbench_image(
    row: Mapping[str, str], index: str, base: str, encoded_images: dict[str, str], at: str
) -> str:
    """The image of a row in base64: its own, or that of an earlier row.

    A row names the earlier row by its index, or has the same question in another order.
    encoded_images: the images so far, by index; a row's own image is added.
    """
    given = row["image"] or ""
    if len(given) > LONGEST_MMBENCH_INDEX:
        encoded_images[index] = given
    encoded = encoded_images.get(index) or encoded_images.get(given) or encoded_images.get(base)
    if encoded is None:
        missing = f"there is no image, and none of a row with index {given or base} before it"
        raise BadRow(f"{at}: {missing}; {FETCH_AGAIN}")
    return encoded


def read_captions(name: str, where: Path, images: str | None = None) -> BenchmarkTask:
    """COCO captions: JSON with images and annotations; scored by CIDEr-D."""
    folder = Path(images or where.parent)
    table = parse_json_of_type(read_text(where), str(where), dict)
    captions_of_image: dict[str, list[str]] = {}
    for number, annotation in enumerate(items_field(table, "annotations", str(where)), start=1):
        at = f"{where}, annotation {number}"
        captions = captions_of_image.setdefault(text_field(annotation, "image_id", at), [])
        captions.append(text_field(annotation, "caption", at))
    questions = []
    for number, row in enumerate(items_field(table, "images", str(where)), start=1):
        at = f"{where}, image {number}"
        image_id = text_field(row, "id", at)
        if image_id in captions_of_image:
            image = file_image(folder, text_field(row, "file_name", at), at)
            captions = tuple(captions_of_image[image_id])
            questions.append(BenchmarkQuestion(at, CAPTION_INSTRUCTION, captions, image))
    return BenchmarkTask(name, questions, PLAIN_PROMPT, None, max_new_tokens=40)


def read_vqa(
    name: str, where: Path, images: str | None = None, annotations: str | None = None
) -> BenchmarkTask:
    """VQAv2: its two JSON files, or one JSON list of question, image and answers of several people."""
    folder = Path(images or where.parent)
    rows = _vqav2_rows(where, Path(annotations)) if annotations else _plain_vqa_rows(where)
    questions = [_vqa_question(at, row, folder) for at, row in rows]
    return BenchmarkTask(name, questions, WORD_PROMPT, grading.vqa)


def read_textvqa(name: str, where: Path, images: str | None = None) -> BenchmarkTask:
    """TextVQA: JSON whose data is a list of question, image_id and the answers of ten people.

    Its test file has no answers.
    """
    folder = Path(images or where.parent)
    table = parse_json_of_type(read_text(where), str(where), dict)
    questions = []
    for number, row in enumerate(items_field(table, "data", str(where)), start=1):
        at = f"{where}, row {number}"
        file = f"{text_field(row, 'image_id', at)}.jpg"
        questions.append(_vqa_question(at, {**row, "image": file}, folder))
    return BenchmarkTask(name, questions, WORD_PROMPT, grading.textvqa)


def _plain_vqa_rows(where: Path) -> list[tuple[str, Any]]:
    text = read_text(where)
    if text.lstrip().startswith("{"):
        cure = f"VQAv2's questions need annotations=FILE beside them, TextVQA's file is textvqa:{where}"
        raise UserError(f"{where} is not a list of questions; {cure}")
    rows = []
    for number, row in enumerate(parse_json_of_type(text, str(where), list), start=1):
        rows.append((f"{where}, row {number}", row))
    return rows


def _vqav2_rows(where: Path, annotations: Path) -> list[tuple[str, Any]]:
    """The questions, each with its answers from the other file and its image's name in COCO."""
    table = parse_json_of_type(read_text(where), str(where), dict)
    split = text_field(table, "data_subtype", str(where))
    answers = _vqav2_answers(annotations)
    rows = []
    for number, row in enumerate(items_field(table, "questions", str(where)), start=1):
        at = f"{where}, question {number}"
        question = text_field(row, "question_id", at)
        if question not in answers:
            cure = "name the annotations of the same split"
            raise BadRow(f"{at}: {annotations} has no answers to question {question}; {cure}")
        file = f"COCO_{split}_{whole_number_field(row, 'image_id', at):012d}.jpg"
        rows.append((at, {**row, "image": file, "answers": answers[question]}))
    return rows


def _vqav2_answers(annotations: Path) -> dict[str, list[Any]]:
    """The answers of ten people to each question, by the question's id."""
    table = parse_json_of_type(read_text(annotations), str(annotations), dict)
    answers = {}
    for number, annotation in enumerate(items_field(table, "annotations", str(annotations)), start=1):
        at = f"{annotations}, annotation {number}"
        question = text_field(annotation, "question_id", at)
        answers[question] = items_field(annotation, "answers", at)
    return answers


def _vqa_question(at: str, row: Any, folder: Path) -> BenchmarkQuestion:
    image = file_image(folder, text_field(row, "image", at), at)
    people = items_field(row, "answers", at)
    if len(people) < 2:
        cure = "VQA accuracy compares those of several people, ask questions with one as llava:FILE"
        raise BadRow(f"{at}: there is one answer; {cure}")
    text = text_field(row, "question", at)
    answers = tuple(_answer_of_person(person, at) for person in people)
    return BenchmarkQuestion(at, text, answers, image)


def _answer_of_person(person: Any, at: str) -> str:
    """What one of the people answered, which may be an empty text."""
    answer = person.get("answer") if isinstance(person, Mapping) else person
    if not isinstance(answer, (str, int, float)):
        raise BadRow(f"{at}: an answer is not a text but {quote_value(answer)}; {FETCH_AGAIN}")
    return str(answer)
