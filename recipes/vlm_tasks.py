"""Benchmarks of vision-language models, from files in the formats in which they are published; and any source of conversations.

A task is a text, `KIND:WHERE?option=value`:

    cv_bench:GLOB              parquet of nyu-visionx/CV-Bench: question, choices, answer "(A)", type, task, source, image
    mmvp:FOLDER                Questions.csv and MMVP Images/1.jpg ...; right is a pair of questions
    pope:FILE?images=FOLDER    JSONL of image, text, label (question_id); yes or no
    gqa:FILE?images=FOLDER     JSON of id -> question, answer, imageId; one word or phrase
    mmbench:FILE               TSV with base64 images: question, A, B, C, D, answer, category, hint; rows whose index differs by whole millions are one question
    captions:FILE?images=...   JSON of COCO captions (images, annotations); CIDEr-D
    vqa:FILE?images=FOLDER     JSON list of question, image, answers of several people: a form of ours, which those of VQAv2 and TextVQA are easily brought into
    scenes                     the first answer of each conversation, of a comparison its last word
    llava:FILE, ...            the first learnt answer of each conversation, exactly, asked for as in training: behind the system turn, earlier turns and the
                               images where they stand (recipes/conversation_sources.py)
"""

from __future__ import annotations

import base64
import csv
import io
import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from recipes.conversation_sources import OPTIONS, ConversationSource, open_conversations, parse_source
from recipes.conversations import IMAGE, BadRow, Message, decoded
from recipes.vlm_grading import exact, last_word, letter, vqa, yes_no
from vision_core.errors import UserError

Grade = Callable[[str, Sequence[str], Sequence[str]], float]


@dataclass(frozen=True)
class Question:
    """One question about images. where: file and row. images: makes them. group: what its score is averaged with. bundle: right only together.

    turns: the conversation up to the graded answer, where the question is of one; otherwise the task's prompt asks `text` behind the images.
    """

    where: str
    text: str
    expected: tuple[str, ...]
    images: Callable[[], list[Tensor]]
    choices: tuple[str, ...] = ()
    group: str = "all"
    bundle: str = ""
    turns: tuple[Message, ...] = ()


@dataclass(frozen=True)
class Task:
    """Questions with their pinned prompt and grader. name: the text that names it. weights: of each group in the benchmark's own figure; None where every
    question counts the same.
    """

    name: str
    questions: list[Question]
    prompt: str
    grade: Grade | None
    max_new_tokens: int = 16
    weights: Callable[[Collection[str]], Mapping[str, float]] | None = None

    def prompted(self, question: Question) -> str:
        """The text that the model reads."""
        options = "\n".join(f"({chr(ord('A') + number)}) {choice}" for number, choice in enumerate(question.choices))
        return self.prompt.format(question=question.text, options=options)

    @property
    def grader(self) -> str:
        """In words."""
        return "CIDEr-D" if self.grade is None else self.grade.__name__


OMNI3D = "Omni3D"
LETTER_PROMPT = "{question}\n{options}\nAnswer with the letter of the right choice."
PLAIN_PROMPT = "{question}"
WORD_PROMPT = "{question}\nAnswer with one word or a short phrase."
YES_NO_PROMPT = "{question}\nAnswer with yes or no."


def open_task(text: str, limit: int | None = None) -> Task:
    """The task that `text` names, or its first `limit` questions. Raises UserError for what cannot be opened, BadRow for a row that is no question."""
    kind, where, options = parse_source(text, {**{kind: known for kind, (_, known) in BENCHMARKS.items()}, **OPTIONS}, "task")
    task = conversations_task(text, limit) if kind in OPTIONS else BENCHMARKS[kind][0](text, Path(where), **options)
    if not task.questions:
        raise UserError(f"{text} has no questions")
    return replace(task, questions=task.questions[:limit])


def conversations_task(name: str, limit: int | None) -> Task:
    """The first learnt answer of each conversation of a source, asked for with all that stands in front of it."""
    source = open_conversations(name)
    return Task(name, questions_of(source, limit), PLAIN_PROMPT, last_word if source.read_aloud else exact)


def questions_of(source: ConversationSource, limit: int | None = None) -> list[Question]:
    """A question for each of the first `limit` conversations; its images are read again when they are asked for."""
    questions = []
    for row in range(len(source))[:limit]:
        conversation = source[row]
        answered = next(number for number, message in enumerate(conversation.messages) if message.role == "assistant" and message.learnt)
        turns = conversation.messages[:answered]
        shown = sum(turn.text.count(IMAGE) for turn in turns)
        question = Question(
            where=conversation.where,
            text=turns[-1].text.replace(IMAGE, "").strip(),
            expected=(conversation.messages[answered].text.strip(),),
            images=(lambda row=row, shown=shown: list(source[row].images[:shown])) if shown else list,
            choices=conversation.choices,
            group=conversation.kind or "all",
            turns=turns,
        )
        questions.append(question)
    return questions


def cv_bench(name: str, where: Path) -> Task:
    import datasets

    rows = datasets.load_dataset("parquet", data_files=str(where), split="train").cast_column("image", datasets.Image(decode=False))
    questions = []
    for number, row in enumerate(rows.remove_columns("image")):
        at = f"{where}, row {number + 1}"
        expected = re.sub(r"[()\s]", "", row["answer"])
        group = OMNI3D if row["type"] == "3D" else row["source"]
        image = lambda number=number, at=at: [decoded(rows[number]["image"]["bytes"], at)]  # noqa: E731
        questions.append(Question(at, row["question"], (expected,), image, tuple(row["choices"]), group))

    return Task(name, questions, LETTER_PROMPT, letter, weights=cv_bench_weights)


def cv_bench_weights(groups: Collection[str]) -> dict[str, float]:
    """((ADE20K + COCO) / 2 + Omni3D) / 2, as published; of a file with one half alone, that half."""
    halves = {"2D": [name for name in groups if name != OMNI3D], "3D": [name for name in groups if name == OMNI3D]}
    present = [half for half in halves.values() if half]
    return {name: 1 / len(present) / len(half) for half in present for name in half}


def mmvp(name: str, where: Path) -> Task:
    file, questions = where / "Questions.csv", []
    for number, row in enumerate(_csv_rows(file, ",")):
        at = f"{file}, row {number + 1}"
        choices = tuple(part.strip() for part in re.split(r"\([a-z]\)", _field(row, "Options", at)) if part.strip())
        expected = re.sub(r"[()\s]", "", _field(row, "Correct Answer", at)).upper()
        image = _file_image(where / "MMVP Images", f"{row['Index']}.jpg", at)
        questions.append(Question(at, _field(row, "Question", at), (expected,), image, choices, bundle=str(number // 2)))
    return Task(name, questions, LETTER_PROMPT, letter)


def pope(name: str, where: Path, images: str | None = None) -> Task:
    questions = []
    for number, line in enumerate(_text(where).rstrip("\n").split("\n")):  # splitlines would also split within a text
        at = f"{where}, line {number + 1}"
        row = _parsed(line, at)
        image = _file_image(Path(images or where.parent), _field(row, "image", at), at)
        questions.append(Question(at, _field(row, "text", at), (_field(row, "label", at),), image, ("yes", "no")))
    return Task(name, questions, YES_NO_PROMPT, yes_no)


def gqa(name: str, where: Path, images: str | None = None) -> Task:
    questions = []
    for name, row in _parsed(_text(where), str(where)).items():
        at = f"{where}, question {name}"
        image = _file_image(Path(images or where.parent), f"{_field(row, 'imageId', at)}.jpg", at)
        questions.append(Question(at, _field(row, "question", at), (_field(row, "answer", at),), image))
    return Task(name, questions, WORD_PROMPT, exact)


def mmbench(name: str, where: Path) -> Task:
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
    return Task(name, questions, LETTER_PROMPT, letter)


def captions(name: str, where: Path, images: str | None = None) -> Task:
    table = _parsed(_text(where), str(where))
    of_image: dict[Any, list[str]] = {}
    for note in table["annotations"]:
        of_image.setdefault(note["image_id"], []).append(note["caption"])
    questions = []
    for row in table["images"]:
        at = f"{where}, image {row['id']}"
        if row["id"] in of_image:
            image = _file_image(Path(images or where.parent), _field(row, "file_name", at), at)
            questions.append(Question(at, "Describe the picture in one sentence.", tuple(of_image[row["id"]]), image))
    return Task(name, questions, PLAIN_PROMPT, None, max_new_tokens=40)


def vqa_task(name: str, where: Path, images: str | None = None) -> Task:
    questions = []
    for number, row in enumerate(_parsed(_text(where), str(where))):
        at = f"{where}, row {number + 1}"
        said = tuple(each["answer"] if isinstance(each, Mapping) else str(each) for each in _field(row, "answers", at))
        image = _file_image(Path(images or where.parent), _field(row, "image", at), at)
        questions.append(Question(at, _field(row, "question", at), said, image))
    return Task(name, questions, WORD_PROMPT, vqa)


# how each is read, and the names of its options
BENCHMARKS: dict[str, tuple[Callable[..., Task], set[str]]] = {
    "cv_bench": (cv_bench, set()),
    "mmvp": (mmvp, set()),
    "pope": (pope, {"images"}),
    "gqa": (gqa, {"images"}),
    "mmbench": (mmbench, set()),
    "captions": (captions, {"images"}),
    "vqa": (vqa_task, {"images"}),
}


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
    return list(csv.DictReader(io.StringIO(_text(file), newline=""), delimiter=delimiter))


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
