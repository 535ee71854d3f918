"""Keeps the answers that a model has given, so that an evaluation that was killed goes on.

Each process has one file, `answers-<rank>.jsonl`, which grows by a batch at a time. A header line
says by hashes of which model and task the answers are. Then comes one line for each question and
condition of its images. Answers of another model, task or device are never taken over.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from encoders.evaluation.used_images import content_hash
from fusion.conversations.conversation import Conversation
from fusion.evaluation.tasks import BenchmarkQuestion, BenchmarkTask
from vision_core.errors import UserError
from vision_core.files.json_lines import JsonLines
from vision_core.processes.distributed import rank
from vision_core.runs.checkpoints import sync
from vision_core.runs.folder_checks import FINISHED

# endings of weights, configs, processor and tokenizer
MODEL_FILE_ENDINGS = (".safetensors", ".json", ".jinja", ".txt", ".model")
LIBRARIES = ("torch", "transformers")  # another version of them may round numbers in another way


class GivenAnswer(NamedTuple):
    """The answer to one question.

    question: the question's number in the task.
    reply: what the model said.
    loss: the summed loss of the expected answer.
    tokens: the number of tokens of the expected answer.
    """

    question: int
    reply: str
    loss: float
    tokens: int


class KeptAnswers:
    """The kept answers to one task. Every process reads those of all processes and adds its own.

    folder: where the files are.
    header: says of which model and task the answers are, see `header_of`.
    """

    def __init__(self, folder: Path, header: dict[str, Any]) -> None:
        self._header = header
        self._key = _digest(header)
        self._lines = _answer_lines(folder / f"answers-{rank():04d}.jsonl")
        self._has_header = False
        self._found: dict[tuple[str, int], dict[str, Any]] = {}
        for path in sorted(folder.glob("answers-*.jsonl")):
            # the last line may be torn: its batch is asked again
            for record in _answer_lines(path).read():
                if record.get("key") == self._key and "reply" in record:
                    self._found[record["shown"], record["question"]] = record

    def __len__(self) -> int:
        return len(self._found)

    def find(
        self, condition: str, numbers: Sequence[int], asked: Sequence[Conversation]
    ) -> list[GivenAnswer] | None:
        """A batch's answers, or None where one is missing or was given to other images.

        asked: the batch in the form in which it would be asked now.
        """
        answers = []
        for number, question in zip(numbers, asked, strict=True):
            record = self._found.get((condition, number))
            if record is None or record["images"] != _digest_of_images(question.images):
                return None
            loss = float(record["loss"])
            answers.append(GivenAnswer(record["question"], record["reply"], loss, record["tokens"]))
        return answers

    def add(self, condition: str, answers: Sequence[GivenAnswer], asked: Sequence[Conversation]) -> None:
        """Keep a batch's answers; they are on the disk when this returns.

        Raises UserError where they cannot be written.
        """
        try:
            self._lines.path.parent.mkdir(exist_ok=True)
            if not self._has_header:
                self._lines.append({"header": self._header, "key": self._key})
                self._has_header = True
            for answer, question in zip(answers, asked, strict=True):
                self._lines.append(self._record_of(condition, answer, question))
            sync(self._lines.path)
        except OSError as error:
            cure = "make room, or give another --output_dir"
            raise UserError(f"{self._lines.path} cannot be written ({error.strerror}); {cure}") from None

    def _record_of(self, condition: str, answer: GivenAnswer, question: Conversation) -> dict[str, Any]:
        return {
            "key": self._key,
            "shown": condition,
            "question": answer.question,
            "reply": answer.reply,
            "loss": answer.loss,
            "tokens": answer.tokens,
            "images": _digest_of_images(question.images),
        }


def header_of(model: str, task: BenchmarkTask, batch_size: int, thought_tokens: int) -> dict[str, Any]:
    """What decides about a task's answers: the model, the questions, their prompts and the limits.

    How answers are graded does not count. model: the model's fingerprint.
    """
    return {
        "model": model,
        "name": task.name,
        "task": _digest([_description(task, question) for question in task.questions]),
        "questions": len(task.questions),
        "max_new_tokens": task.max_new_tokens,
        "thought_tokens": thought_tokens,
        "batch_size": batch_size,
    }


def _description(task: BenchmarkTask, question: BenchmarkQuestion) -> list[Any]:
    turns = [[turn.role, turn.text] for turn in question.turns]
    return [question.where, task.prompt_for(question), question.expected[0], turns]


def model_fingerprint(folder: Path, device: str) -> str:
    """A hash of a model's files, the device's type and the versions of the libraries that compute.

    Raises UserError for a file that cannot be read.
    """
    digests = {}
    try:
        for path in sorted(folder.iterdir()):
            if path.is_file() and path.suffix in MODEL_FILE_ENDINGS and path.name != FINISHED:
                with path.open("rb") as file:
                    digests[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        path = error.filename or folder
        raise UserError(f"{path} cannot be read ({error.strerror}); give yourself access to it") from None
    return _digest([digests, device, list(map(version, LIBRARIES))])


def _answer_lines(path: Path) -> JsonLines:
    return JsonLines(path, _ignore_warning)


def _ignore_warning(text: str) -> None:
    """Lines that wait for room are written with the next batch."""


def _digest(value: Any) -> str:
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=16).hexdigest()


def _digest_of_images(images: Sequence[Tensor]) -> str:
    return _digest([content_hash(image).tolist() for image in images])
