"""What a vision-language model is asked: questions with a prompt and a grader, of a benchmark or of conversations.

A task is a text, `KIND:WHERE?option=value`. The published benchmarks are in recipes/vlm_benchmarks.py; of conversations:

    scenes                     the first question of each conversation; its own answer, of a comparison the last word
    llava:FILE, ...            the first question of each conversation; its own answer, exactly (recipes/conversation_sources.py)
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from recipes.conversation_sources import OPTIONS, open_conversations, parse_source
from recipes.conversations import IMAGE
from recipes.vlm_grading import exact, last_word
from vision_core.errors import UserError

Grade = Callable[[str, Sequence[str], Sequence[str]], float]


@dataclass(frozen=True)
class Question:
    """One question about images.

    where: file and row. images: makes them. choices: by letter, an empty one where a letter has none. group: what its
    score is averaged with. bundle: right only together.
    """

    where: str
    text: str
    expected: tuple[str, ...]
    images: Callable[[], list[Tensor]]
    choices: tuple[str, ...] = ()
    group: str = "all"
    bundle: str = ""


@dataclass(frozen=True)
class Task:
    """Questions with their pinned prompt and grader.

    name: the text that names it. weights: of each group in the benchmark's own figure; None where every question counts
    the same. figures: what the benchmark prints beside its score, by name and in percent, from the answers and what was
    expected.
    """

    name: str
    questions: list[Question]
    prompt: str
    grade: Grade | None
    max_new_tokens: int = 16
    weights: Callable[[Collection[str]], Mapping[str, float]] | None = None
    figures: Callable[[Sequence[str], Sequence[str]], dict[str, float]] | None = None

    def prompted(self, question: Question) -> str:
        """The text that the model reads."""
        options = "\n".join(f"({chr(ord('A') + number)}) {choice}" for number, choice in enumerate(question.choices) if choice)
        return self.prompt.format(question=question.text, options=options)

    @property
    def grader(self) -> str:
        """In words."""
        return "CIDEr-D" if self.grade is None else self.grade.__name__


PLAIN_PROMPT = "{question}"


def open_task(text: str, limit: int | None = None) -> Task:
    """The task that `text` names, or its first `limit` questions.

    Raises UserError for what cannot be opened, BadRow for a row that is no question.
    """
    from recipes.vlm_benchmarks import BENCHMARKS  # their readers make the tasks that this file defines

    kind, where, options = parse_source(text, {**{kind: known for kind, (_, known) in BENCHMARKS.items()}, **OPTIONS}, "task")
    task = conversations_task(text, limit) if kind in OPTIONS else BENCHMARKS[kind][0](text, Path(where), **options)
    if not task.questions:
        raise UserError(f"{text} has no questions")
    return replace(task, questions=task.questions[:limit])


def conversations_task(name: str, limit: int | None) -> Task:
    """The first question of each conversation of a source."""
    source = open_conversations(name)
    questions = []
    for row in range(len(source))[:limit]:
        conversation = source[row]
        asked, answered = [message.text for message in conversation.messages if message.role != "system"][:2]
        group = conversation.kind or "all"
        images = (lambda row=row: list(source[row].images)) if conversation.images else list
        questions.append(Question(conversation.where, asked.replace(IMAGE, "").strip(), (answered,), images, conversation.choices, group))
    return Task(name, questions, PLAIN_PROMPT, last_word if source.read_aloud else exact)
