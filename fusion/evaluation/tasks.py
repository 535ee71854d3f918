"""What a vision-language model is asked: questions with their prompt and their grader.

A task is a text, `KIND:WHERE?option=value`. The kinds of the published benchmarks are listed in
fusion/evaluation/benchmarks.py. Any source of conversations (fusion/conversations/sources.py) is a
task too:

    scenes         asks for the first answer of each conversation; of the answer to a comparison
                   only the last word counts
    llava:FILE     asks for the first learnt answer of each conversation, as in training: behind
                   the system turn, the earlier turns and their images; it must match exactly
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from fusion.conversations.conversation import IMAGE, Message
from fusion.conversations.sources import ConversationSource, open_conversations
from fusion.evaluation.grading import exact, last_word

PLAIN_PROMPT = "{question}"
ImageReading = Callable[[], list[Tensor]]
Grader = Callable[[str, Sequence[str], Sequence[str]], float]


@dataclass(frozen=True)
class BenchmarkQuestion:
    """One question about images.

    where: file and row, for messages.
    text: the question without its prompt.
    expected: the answers that count as right; for a choice, its letter.
    images: reads the images, each `[3, H, W]` uint8.
    choices: the choices in the order of their letters; an empty text where a letter has none.
    group: the score is also given for each group of questions.
    bundle: the questions of one bundle count as right only together.
    turns: the conversation up to the graded answer, where the question comes from a conversation.
        Otherwise the task's prompt asks `text` behind the images.
    """

    where: str
    text: str
    expected: tuple[str, ...]
    images: ImageReading
    choices: tuple[str, ...] = ()
    group: str = "all"
    bundle: str = ""
    turns: tuple[Message, ...] = ()


@dataclass(frozen=True)
class BenchmarkTask:
    """Questions with their pinned prompt and grader.

    name: the text that names the task.
    grade: gives points from 0 to 1 to an answer; None means CIDEr-D over all answers.
    weights: gives each group its weight in the benchmark's own figure; with None every question
        counts the same.
    figures: gives what the benchmark prints beside its score, by name and in percent, from the
        answers and what was expected.
    """

    name: str
    questions: list[BenchmarkQuestion]
    prompt: str
    grade: Grader | None
    max_new_tokens: int = 16
    weights: Callable[[Collection[str]], Mapping[str, float]] | None = None
    figures: Callable[[Sequence[str], Sequence[str]], dict[str, float]] | None = None

    def prompt_for(self, question: BenchmarkQuestion) -> str:
        """The text that the model reads, with the lettered choices in it."""
        options = []
        for number, choice in enumerate(question.choices):
            if choice:
                options.append(f"({chr(ord('A') + number)}) {choice}")
        return self.prompt.format(question=question.text, options="\n".join(options))

    @property
    def grader(self) -> str:
        """The grader's name, which is printed with every score."""
        return "CIDEr-D" if self.grade is None else self.grade.__name__


def task_of_conversations(name: str, limit: int | None) -> BenchmarkTask:
    """A task that asks for the first learnt answer of each conversation of the source `name`."""
    source = open_conversations(name)
    grade = last_word if source.answers_in_steps else exact
    return BenchmarkTask(name, questions_of(source, limit), PLAIN_PROMPT, grade)


def questions_of(source: ConversationSource, limit: int | None = None) -> list[BenchmarkQuestion]:
    """A question for each of the first `limit` conversations of a source."""
    return [question_of_row(source, row) for row in range(len(source))[:limit]]


def question_of_row(source: ConversationSource, row: int) -> BenchmarkQuestion:
    """Asks for the first learnt answer of a row, with everything in front of it as context.

    The images are read again when they are asked for.
    """
    conversation = source[row]
    answer = index_of_first_learnt_answer(conversation.messages)
    turns = conversation.messages[:answer]
    image_count = sum(turn.text.count(IMAGE) for turn in turns)

    def read_images() -> list[Tensor]:
        return list(source[row].images[:image_count])

    return BenchmarkQuestion(
        where=conversation.where,
        text=turns[-1].text.replace(IMAGE, "").strip(),
        expected=(conversation.messages[answer].text.strip(),),
        images=read_images if image_count else list,
        choices=conversation.choices,
        group=conversation.kind or "all",
        turns=turns,
    )


def index_of_first_learnt_answer(messages: Sequence[Message]) -> int:
    """The index of the first answer that is trained on; a checked row has one."""
    for index, message in enumerate(messages):
        if message.role == "assistant" and message.learnt:
            return index
    raise AssertionError("a checked row has a learnt answer")
