"""What a vision-language model is asked: questions with a prompt and a grader, of a benchmark or of
conversations.

A task is a text, `KIND:WHERE?option=value`. The published benchmarks are in
fusion/evaluation/benchmarks.py; of conversations:

    scenes          the first answer of each conversation, of a comparison its last word llava:FILE,
    ... the first learnt answer of each conversation, exactly, asked for as in training: behind the
    system
                    turn, earlier turns and the images where they stand
                    (fusion/conversations/sources.py)
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from fusion.conversations.conversation import IMAGE, Message
from fusion.conversations.sources import ConversationSource, open_conversations
from fusion.evaluation.grading import exact, last_word

Grade = Callable[[str, Sequence[str], Sequence[str]], float]


@dataclass(frozen=True)
class Question:
    """One question about images.

    where: file and row. images: makes them. choices: by letter, an empty one where a letter has
    none. group: what its score is averaged with. bundle: right only together. turns: the
    conversation up to the graded answer, where the question is of one; otherwise the task's prompt
    asks `text` behind the images.
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
    """Questions with their pinned prompt and grader.

    name: the text that names it. weights: of each group in the benchmark's own figure; None where
    every question counts the same. figures: what the benchmark prints beside its score, by name and
    in percent, from the answers and what was expected.
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
        options = "\n".join(
            f"({chr(ord('A') + number)}) {choice}" for number, choice in enumerate(question.choices) if choice
        )
        return self.prompt.format(question=question.text, options=options)

    @property
    def grader(self) -> str:
        """In words."""
        return "CIDEr-D" if self.grade is None else self.grade.__name__


PLAIN_PROMPT = "{question}"


def conversations_task(name: str, limit: int | None) -> Task:
    """The first learnt answer of each conversation of a source, asked for with all that stands in
    front of it."""
    source = open_conversations(name)
    return Task(name, questions_of(source, limit), PLAIN_PROMPT, last_word if source.read_aloud else exact)


def questions_of(source: ConversationSource, limit: int | None = None) -> list[Question]:
    """A question for each of the first `limit` conversations; its images are read again when they
    are asked for."""
    questions = []
    for row in range(len(source))[:limit]:
        conversation = source[row]
        answers = (
            number
            for number, each in enumerate(conversation.messages)
            if each.role == "assistant" and each.learnt
        )
        answered = next(answers)
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
