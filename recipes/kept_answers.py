"""What a model has answered already, kept so that an evaluation that was killed goes on where it was.

One file for each process, `answers-<rank>.jsonl`, grows by a batch at a time. A header line says of which model and task the answers are, by hashes,
then comes one line for each question and way of showing its images. Answers of another model, task or device are never taken over.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import Tensor

from encoders.evaluation.used_images import content_hash
from recipes.conversations import Conversation
from recipes.vlm_tasks import Task
from vision_core.distributed import rank
from vision_core.errors import UserError
from vision_core.folder_checks import FINISHED
from vision_core.json_lines import JsonLines

OF_A_MODEL = (".safetensors", ".json", ".jinja", ".txt", ".model")  # endings of weights, configs, processor and tokenizer
LIBRARIES = ("torch", "transformers")  # by whose versions numbers round in another way

Row = tuple[int, str, float, int]  # number of the question, reply, loss of the expected answer, and its tokens


class KeptAnswers:
    """The answers to one task. Every process reads those of all processes and adds its own.

    folder: of the files. header: by which answers are known, see `header_of`.
    """

    def __init__(self, folder: Path, header: dict[str, Any]) -> None:
        self._header, self._key = header, _digest(header)
        self._lines = JsonLines(folder / f"answers-{rank():04d}.jsonl", lambda text: None)
        self._has_header = False
        self._found: dict[tuple[str, int], dict[str, Any]] = {}
        for path in sorted(folder.glob("answers-*.jsonl")):
            for record in JsonLines(path, lambda text: None).read():  # the last line may be torn: its batch is asked again
                if record.get("key") == self._key and "reply" in record:
                    self._found[record["shown"], record["question"]] = record

    def __len__(self) -> int:
        return len(self._found)

    def rows(self, shown: str, numbers: Sequence[int], asked: Sequence[Conversation]) -> list[Row] | None:
        """A batch's answers, or None where one is missing or was given to other images. asked: the batch as it would be asked now."""
        records = [self._found.get((shown, number)) for number in numbers]
        for record, question in zip(records, asked, strict=True):
            if record is None or record["images"] != _digest_of_images(question.images):
                return None
        return [(record["question"], record["reply"], float(record["loss"]), record["tokens"]) for record in records]

    def add(self, shown: str, rows: Sequence[Row], asked: Sequence[Conversation]) -> None:
        """Keep a batch's answers, on the disk when this returns. Raises UserError where they cannot be written."""
        try:
            self._lines.path.parent.mkdir(exist_ok=True)
            if not self._has_header:
                self._lines.append({"header": self._header, "key": self._key})
                self._has_header = True
            for (number, reply, loss, tokens), question in zip(rows, asked, strict=True):
                images = _digest_of_images(question.images)
                told = {"reply": reply, "loss": loss, "tokens": tokens, "images": images}
                self._lines.append({"key": self._key, "shown": shown, "question": number} | told)
            self._lines.sync()
        except OSError as error:
            raise UserError(f"{self._lines.path} cannot be written ({error.strerror}); make room, or give another --output_dir") from None


def header_of(model: str, task: Task, batch_size: int, thought_tokens: int) -> dict[str, Any]:
    """What decides about a task's answers. model: its fingerprint. Questions and prompts count; how answers are graded does not."""
    questions = [
        [question.where, task.prompted(question), question.expected[0], [[turn.role, turn.text] for turn in question.turns]]
        for question in task.questions
    ]
    limits = {"max_new_tokens": task.max_new_tokens, "thought_tokens": thought_tokens, "batch_size": batch_size}
    return {"model": model, "name": task.name, "task": _digest(questions), "questions": len(questions)} | limits


def model_fingerprint(folder: Path, device: str) -> str:
    """A hash of a model's files, with the device's type and the libraries that compute. Raises UserError where one cannot be read."""
    digests = {}
    try:
        for path in sorted(folder.iterdir()):
            if path.is_file() and path.suffix in OF_A_MODEL and path.name != FINISHED:
                with path.open("rb") as file:
                    digests[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{error.filename or folder} cannot be read ({error.strerror}); give yourself access to it") from None
    return _digest([digests, device, [version(library) for library in LIBRARIES]])


def _digest(what: Any) -> str:
    return hashlib.blake2b(json.dumps(what, sort_keys=True).encode(), digest_size=16).hexdigest()


def _digest_of_images(images: Sequence[Tensor]) -> str:
    return _digest([content_hash(image).tolist() for image in images])
