"""Benchmarks of vision-language models, from files in the formats in which they are published; and any source of conversations.

A task is a text, `KIND:WHERE?option=value`:

    cv_bench:GLOB              parquet of nyu-visionx/CV-Bench: question, choices, answer "(A)", type, task, source, image
    mmvp:FOLDER                Questions.csv and MMVP Images/1.jpg ...; right is a pair of questions
    pope:FILE?images=FOLDER    JSONL of image, text, label (question_id); yes or no
    gqa:FILE?images=FOLDER     JSON of id -> question, answer, imageId; one word or phrase
    mmbench:FILE               TSV with base64 images: question, A, B, C, D, answer, category, hint; rows whose index differs by whole millions are one question
    captions:FILE?images=...   JSON of COCO captions (images, annotations); CIDEr-D
    vqa:FILE?images=FOLDER     JSON list of question, image, answers of several people
    scenes                     the first question of each conversation; its own answer, of a comparison the last word
    llava:FILE, ...            the first question of each conversation; its own answer, exactly (recipes/conversation_sources.py)
"""

from __future__ import annotations

import base64
import csv
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from recipes.conversation_sources import OPTIONS, open_conversations
from recipes.conversations import IMAGE, BadRow, decoded
from recipes.vlm_grading import exact, last_word, letter, vqa, yes_no
from vision_core.errors import UserError

Grade = Callable[[str, Sequence[str], Sequence[str]], float]


@dataclass(frozen=True)
class Question:
    """One question about images. where: file and row. images: makes them. group: what its score is averaged with. bundle: right only together."""

    where: str
    text: str
    expected: tuple[str, ...]
    images: Callable[[], list[Tensor]]
    choices: tuple[str, ...] = ()
    group: str = "all"
    bundle: str = ""


@dataclass(frozen=True)
class Task:
    """Questions with their pinned prompt and grader. summary: from accuracies by group in percent to the benchmark's own figure, or None for their mean."""

    name: str
    questions: list[Question]
    prompt: str
    grade: Grade | None
    max_new_tokens: int = 16
    summary: Callable[[Mapping[str, float]], float] | None = None

    def prompted(self, question: Question) -> str:
        """The text that the model reads."""
        options = "\n".join(f"({chr(ord('A') + number)}) {choice}" for number, choice in enumerate(question.choices))
        return self.prompt.format(question=question.text, options=options)

    @property
    def grader(self) -> str:
        """In words."""
        return "CIDEr-D" if self.grade is None else self.grade.__name__


LETTER_PROMPT = "{question}\n{options}\nAnswer with the letter of the right choice."
PLAIN_PROMPT = "{question}"
WORD_PROMPT = "{question}\nAnswer with one word or a short phrase."
YES_NO_PROMPT = "{question}\nAnswer with yes or no."


def open_task(text: str, limit: int | None = None) -> Task:
    """The task that `text` names, or its first `limit` questions. Raises UserError for what cannot be opened, BadRow for a row that is no question."""
    kind, _, rest = text.partition("?")[0].partition(":")
    if kind in READERS:
        where, _, tail = rest, *text.partition("?")[1:]
        task = READERS[kind](Path(where), _images_option(text, tail))
    elif kind in OPTIONS:
        task = conversations_task(text)
    else:
        raise UserError(f"{text!r} names no task; write KIND:WHERE with a kind of {', '.join([*READERS, *OPTIONS])}")
    if not task.questions:
        raise UserError(f"{text} has no questions")
    return task if limit is None else Task(**{**vars(task), "questions": task.questions[:limit]})


def conversations_task(text: str) -> Task:
    """The first question of each conversation of a source."""
    source = open_conversations(text)
    questions = []
    for row in range(len(source)):
        conversation = source[row]
        asked, answered = [message.text for message in conversation.messages if message.role != "system"][:2]
        group = conversation.kind or "all"
        images = (lambda row=row: list(source[row].images)) if conversation.images else list
        questions.append(Question(conversation.where, asked.replace(IMAGE, "").strip(), (answered,), images, conversation.choices, group))
    return Task(text, questions, PLAIN_PROMPT, last_word if source.read_aloud else exact)


def cv_bench(where: Path, images: Path | None) -> Task:
    import datasets

    rows = datasets.load_dataset("parquet", data_files=str(where), split="train").cast_column("image", datasets.Image(decode=False))
    questions = []
    for number, row in enumerate(rows.remove_columns("image")):
        at = f"{where}, row {number + 1}"
        expected = re.sub(r"[()\s]", "", row["answer"])
        group = "Omni3D" if row["type"] == "3D" else row["source"]
        image = lambda number=number, at=at: [decoded(rows[number]["image"]["bytes"], at)]  # noqa: E731
        questions.append(Question(at, row["question"], (expected,), image, tuple(row["choices"]), group))

    def summary(scores: Mapping[str, float]) -> float:
        """((ADE20K + COCO) / 2 + Omni3D) / 2, as published."""
        flat = [value for name, value in scores.items() if name != "Omni3D"]
        parts = ([sum(flat) / len(flat)] if flat else []) + ([scores["Omni3D"]] if "Omni3D" in scores else [])
        return sum(parts) / len(parts)

    return Task("cv_bench", questions, LETTER_PROMPT, letter, summary=summary)


def mmvp(where: Path, images: Path | None) -> Task:
    file, questions = where / "Questions.csv", []
    for number, row in enumerate(_csv_rows(file, ",")):
        at = f"{file}, row {number + 1}"
        choices = tuple(part.strip() for part in re.split(r"\([a-z]\)", _field(row, "Options", at)) if part.strip())
        expected = re.sub(r"[()\s]", "", _field(row, "Correct Answer", at)).upper()
        image = _file_image(where / "MMVP Images", f"{row['Index']}.jpg", at)
        questions.append(Question(at, _field(row, "Question", at), (expected,), image, choices, bundle=str(number // 2)))
    return Task("mmvp", questions, LETTER_PROMPT, letter)


def pope(where: Path, images: Path | None) -> Task:
    questions = []
    for number, line in enumerate(_text(where).splitlines()):
        at = f"{where}, line {number + 1}"
        row = _parsed(line, at)
        image = _file_image(images or where.parent, _field(row, "image", at), at)
        questions.append(Question(at, _field(row, "text", at), (_field(row, "label", at),), image, ("yes", "no")))
    return Task("pope", questions, YES_NO_PROMPT, yes_no)


def gqa(where: Path, images: Path | None) -> Task:
    questions = []
    for name, row in _parsed(_text(where), str(where)).items():
        at = f"{where}, question {name}"
        image = _file_image(images or where.parent, f"{_field(row, 'imageId', at)}.jpg", at)
        questions.append(Question(at, _field(row, "question", at), (_field(row, "answer", at),), image))
    return Task("gqa", questions, WORD_PROMPT, exact)


def mmbench(where: Path, images: Path | None) -> Task:
    """Circular where the file has its questions with their choices turned round: right only if every turn is."""
    rows = list(_csv_rows(where, "\t"))
    kept: dict[str, str] = {}
    questions = []
    for number, row in enumerate(rows):
        at = f"{where}, row {number + 1}"
        index = int(_field(row, "index", at))
        base = str(index % 1_000_000)
        if len(row["image"]) > 64:
            kept[str(index)] = row["image"]
        encoded = kept.get(str(index)) or kept.get(row["image"]) or kept.get(base)
        if encoded is None:
            raise BadRow(f"{at}: there is no image, and none of a row with index {row['image'] or base} before it")
        text = " ".join(part for part in (row.get("hint") or "", _field(row, "question", at)) if part)
        choices = tuple(row[name] for name in "ABCD" if row.get(name))
        image = lambda encoded=encoded, at=at: [decoded(base64.b64decode(encoded), at)]  # noqa: E731
        questions.append(Question(at, text, (_field(row, "answer", at),), image, choices, row.get("category") or "all", base))
    return Task("mmbench", questions, LETTER_PROMPT, letter)


def captions(where: Path, images: Path | None) -> Task:
    table = _parsed(_text(where), str(where))
    of_image: dict[Any, list[str]] = {}
    for note in table["annotations"]:
        of_image.setdefault(note["image_id"], []).append(note["caption"])
    questions = []
    for row in table["images"]:
        at = f"{where}, image {row['id']}"
        if row["id"] in of_image:
            image = _file_image(images or where.parent, _field(row, "file_name", at), at)
            questions.append(Question(at, "Describe the picture in one sentence.", tuple(of_image[row["id"]]), image))
    return Task("captions", questions, PLAIN_PROMPT, None, max_new_tokens=40)


def vqa_task(where: Path, images: Path | None) -> Task:
    questions = []
    for number, row in enumerate(_parsed(_text(where), str(where))):
        at = f"{where}, row {number + 1}"
        said = tuple(each["answer"] if isinstance(each, Mapping) else str(each) for each in _field(row, "answers", at))
        image = _file_image(images or where.parent, _field(row, "image", at), at)
        questions.append(Question(at, _field(row, "question", at), said, image))
    return Task("vqa", questions, WORD_PROMPT, vqa)


READERS: dict[str, Callable[[Path, Path | None], Task]] = {
    "cv_bench": cv_bench,
    "mmvp": mmvp,
    "pope": pope,
    "gqa": gqa,
    "mmbench": mmbench,
    "captions": captions,
    "vqa": vqa_task,
}


def _images_option(text: str, tail: str) -> Path | None:
    name, _, value = tail.partition("=")
    if tail and name != "images":
        raise UserError(f"{text!r}: unknown option {name!r}; the option of a benchmark is images")
    return Path(value) if value else None


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} cannot be read ({error}); name the benchmark's own file") from None


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise BadRow(f"{where}: no JSON ({error}); mend it, or fetch the file again") from None


def _csv_rows(file: Path, delimiter: str) -> Sequence[dict[str, str]]:
    csv.field_size_limit(2**31 - 1)  # images in base64
    return list(csv.DictReader(_text(file).splitlines(), delimiter=delimiter))


def _field(row: Mapping[str, Any], name: str, where: str) -> Any:
    if not isinstance(row, Mapping) or row.get(name) in (None, ""):
        raise BadRow(f"{where}: there is no {name!r}; is this the benchmark's own file?")
    return row[name]


def _file_image(folder: Path, name: str, where: str) -> Callable[[], list[Tensor]]:
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise BadRow(f"{where}: {name} leads out of the image folder {folder}")

    def read() -> list[Tensor]:
        try:
            return [decoded(path.read_bytes(), f"{where}: {name}")]
        except OSError as error:
            raise BadRow(f"{where}: {path} cannot be read ({error.strerror}); name the folder of the images by images=") from None

    return read
