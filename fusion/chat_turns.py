"""What the assistant says in the text of a conversation: where each answer begins and ends, and
which token ends it.

Nothing is searched for in the text. A conversation is rendered twice, the second time with a mark
in place of an answer. What stands in front of the mark and behind it belongs to the template, and
what the two texts do not share is the answer, as the template trims it. That holds for any chat
template.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from os.path import commonprefix
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from fusion.processing_fusion import IMAGE_TOKEN, FusionProcessor
from vision_core.errors import UserError

# of Unicode's private use area; no template changes them
MARK = "\ue000answer\ue001"
SECOND_MARK = "\ue000more\ue001"
OPEN_THOUGHTS = re.compile(r"<think>\s*\Z")
THOUGHTS = re.compile(r"<think>.*?</think>\s*\Z", re.DOTALL)
# what templates call the thoughts of a message: Qwen and most others, gpt-oss, Gemma 4
THOUGHT_KEYS = ("reasoning_content", "thinking", "reasoning")

Messages = Sequence[Mapping[str, Any]]


class ChatTemplateError(UserError):
    """A chat template under which answers cannot be learnt, or not these. The message says why, and
    the cure."""


@dataclass(frozen=True)
class Answer:
    """text[begin:end]: what the assistant says in a turn, behind the prompt for it, with the tokens
    that end the turn.

    last: the token at its end. stop: the token with which the template ends a last turn, mostly the
    same one. The model has to learn to say `stop` here.
    """

    begin: int
    end: int
    last: str
    stop: str


@dataclass(frozen=True)
class RenderedChat:
    """The text of a conversation, BOS included, and an `Answer` for each learnt turn of the
    assistant."""

    text: str
    answers: tuple[Answer, ...]


@dataclass(frozen=True)
class Beginning:
    """What stands between the conversation so far and the words of an answer.

    own: of the template's text in front of the answer, what the assistant has to say itself.
    prompt, learnt: what is inserted there, of which the prompt writes the first and the assistant
    the second.
    """

    own: str = ""
    prompt: str = ""
    learnt: str = ""


@dataclass(frozen=True)
class Ending:
    """text: what ends an answer. last: the token at its end. stop: the token that ends a last
    answer."""

    text: str
    last: str
    stop: str


def render_chat(processor: FusionProcessor, messages: Messages) -> RenderedChat:
    """A conversation as its text, with its learnt answers found.

    messages: `role`, `content` (text, with an `<image>` where each image stands), and for the
    assistant `thoughts`, and `learnt` false, where they are given. A conversation with thoughts is
    rendered with `enable_thinking=True`.

    Three things are completed that a template leaves out. A last answer without an end gets the one
    that a following question would give it. Thoughts that the prompt opens, and the conversation
    lacks, are put back. An earlier answer gets the empty thoughts of its prompt, so that it is
    learnt behind the prompt that asks for it.

    Raises ChatTemplateError where the template's prompts are not how it writes conversations, where
    it changes answers or drops thoughts, where an answer contains a token of the tokenizer's own,
    or where none ends it. Whatever the template itself raises comes through.
    """
    template = _Template(processor, any(message.get("thoughts") for message in messages))
    learnt = [
        number
        for number, message in enumerate(messages)
        if message["role"] == "assistant" and message.get("learnt", True)
    ]
    rendered = template.render(messages)
    around = {number: template.around(messages, number) for number in learnt}
    last_ending = template.ending(messages, learnt[-1], around[learnt[-1]][1]) if learnt else None
    text, copied, answers = "", 0, []
    for number in learnt:
        before, behind = around[number]
        said = _said(rendered, before, behind, messages[number]["content"])
        beginning = template.beginning(messages, number, before)
        is_alike = behind.startswith(last_ending.text) or number == learnt[-1]
        ending = last_ending if is_alike else template.ending(messages, number, behind)
        _refuse_own_tokens(template, messages[number], number, ending)
        text += rendered[copied : len(before)]
        begin = len(text) - len(beginning.own) + len(beginning.prompt)
        text += beginning.prompt + beginning.learnt + said
        copied = len(before) + len(said)
        answers.append(Answer(begin, len(text) + len(ending.text), ending.last, ending.stop))
    rest = rendered[copied:]
    is_ended = not answers or rest.startswith(last_ending.text)
    return RenderedChat(text + (rest if is_ended else last_ending.text), tuple(answers))


def render_prompt(processor: FusionProcessor, messages: Messages, thinking: bool = False) -> str:
    """The text, BOS included, behind which the assistant is to speak, as `render_chat` has it in
    front of an answer."""
    return _Template(processor, thinking).render(messages, prompt=True)


def answer_in(processor: FusionProcessor, generated: str, thinking: bool = False) -> str:
    """The answer in a generated text that was decoded with its special tokens: no thoughts, names
    of channels, or end.

    Of a text that breaks off before its answer the answer is empty.
    """
    chat = _probe(processor, thinking)
    own = chat.text[chat.answers[0].begin :].partition(MARK)[0]
    opening = own.rpartition(SECOND_MARK)[2].strip()
    said, ended, _ = generated.partition(chat.answers[0].stop)
    if opening and opening in said:
        said = said.rpartition(opening)[2]
    elif opening and not ended:
        said = ""
    for token in processor.tokenizer.all_special_tokens:
        said = said.replace(token, "")
    return said.strip()


def stop_token_ids(processor: FusionProcessor) -> list[int]:
    """The tokens with which the chat template ends an answer. Raises ChatTemplateError where none
    can be learnt."""
    stops = {answer.stop for answer in _probe(processor).answers}
    return sorted(processor.tokenizer.convert_tokens_to_ids(stop) for stop in stops)


def add_stops(generation_config: Any, processor: FusionProcessor) -> None:
    """Let generation stop where answers end, beside the stops that it has.

    The end becomes a special token, so that `skip_special_tokens=True` leaves it out of a decoded
    answer. Warns where the chat template is one under which no answer can be learnt.
    """
    try:
        ends = stop_token_ids(processor)
    except ChatTemplateError as error:
        warnings.warn(f"no answer can be learnt under this chat template: {error}", stacklevel=2)
        return
    tokens = processor.tokenizer.convert_ids_to_tokens(ends)
    own = {"additional_special_tokens": tokens}
    processor.tokenizer.add_special_tokens(own, replace_extra_special_tokens=False)
    known = generation_config.eos_token_id
    known = [] if known is None else torch.as_tensor(known).flatten().tolist()
    stops = known + [each for each in ends if each not in known]
    generation_config.eos_token_id = stops[0] if len(stops) == 1 else stops


def _probe(processor: FusionProcessor, thinking: bool = False) -> RenderedChat:
    """A question and an answer, `MARK`, behind thoughts, `SECOND_MARK`, and with a system turn
    where the template wants it."""
    turns: list[dict[str, Any]] = [{"role": "user", "content": "a"}, {"role": "assistant", "content": MARK}]
    if thinking:
        turns[-1]["thoughts"] = SECOND_MARK
    reason: Exception | None = None
    for messages in (turns, [{"role": "system", "content": "s"}, *turns]):
        try:
            return render_chat(processor, messages)
        except Exception as error:  # a template raises what it likes
            reason = reason or error
    raise ChatTemplateError(str(reason)) from None


@dataclass(frozen=True)
class _Template:
    """A processor's chat template, with thoughts switched on or off."""

    processor: FusionProcessor
    thinking: bool

    @cached_property
    def tokens(self) -> re.Pattern[str]:
        """Finds the tokenizer's own tokens in a text."""
        tokenizer = self.processor.tokenizer
        return _own_tokens(tokenizer, tokenizer.eos_token, len(tokenizer))

    def render(self, messages: Messages, prompt: bool = False) -> str:
        """The text of messages, with the prompt for an answer behind it or not."""
        given = [_for_template(message) for message in messages]
        text = self.processor.apply_chat_template(
            given, add_generation_prompt=prompt, enable_thinking=self.thinking
        )
        return self.processor.with_bos(text)

    def around(self, messages: Messages, number: int) -> tuple[str, str]:
        """What the template writes before and behind the content of message `number`. Raises
        ChatTemplateError."""
        before, found, behind = self.render(_marked(messages, number, MARK)).partition(MARK)
        if not found or MARK in behind:
            fault = "repeats" if found else "drops"
            raise ChatTemplateError(
                f"the chat template {fault} what the assistant says; use another template"
            )
        return before, behind

    def beginning(self, messages: Messages, number: int, before: str) -> Beginning:
        """How the answer of message `number` begins, behind `before`, the conversation up to it.

        Raises ChatTemplateError where the template has words of its own there, drops the thoughts,
        or has another prompt.
        """
        prompt = self.render(messages[:number], prompt=True)
        thoughts = (messages[number].get("thoughts") or "").strip()
        if before.startswith(prompt):
            own = before[len(prompt) :]
            if thoughts not in own:
                raise _dropped_thoughts(number)
            self._refuse_words(own.replace(thoughts, "", 1) if thoughts else own)
            return Beginning(own=own)
        extra = prompt[len(before) :]
        is_last = number == len(messages) - 1
        if prompt.startswith(before) and OPEN_THOUGHTS.search(extra):
            if thoughts and not is_last:
                raise _dropped_thoughts(number)
            return Beginning(prompt=extra, learnt=f"{thoughts}\n</think>\n\n" if thoughts else "</think>\n\n")
        if prompt.startswith(before) and THOUGHTS.search(extra):
            if thoughts:
                raise _dropped_thoughts(number)
            return Beginning(prompt=extra)
        raise ChatTemplateError(
            "the chat template's prompt for an answer is not how it writes an answer in a conversation, so that the model "
            "would be asked otherwise than it was trained; use another template, or one answer per conversation"
        )

    def _refuse_words(self, own: str) -> None:
        """A model is to write spaces, thoughts, and names of channels that end in one of the
        tokenizer's own tokens."""
        own = own.strip()
        ends_in_token = any(match.end() == len(own) for match in self.tokens.finditer(own))
        if own and not ends_in_token and not THOUGHTS.search(own):
            raise ChatTemplateError(
                f"the chat template puts {own!r} in front of answers, behind its prompt for them; use another template"
            )

    def ending(self, messages: Messages, number: int, behind: str) -> Ending:
        """What ends the answer of message `number`. behind: what follows the answer in the
        conversation.

        That is what the conversation shares with one that ends here, up to the first of the
        tokenizer's own tokens, and its end of text where that follows. Raises ChatTemplateError
        where there is no such token.
        """
        alone = self.around(messages[: number + 1], number)[1]
        shared = commonprefix([behind, alone])
        found = self.tokens.search(shared)
        if found is None:
            return self._ending_by_next_turn(messages, number, behind, alone)
        eos = self.processor.tokenizer.eos_token
        is_closed = eos is not None and shared.startswith(eos, found.end())
        last = eos if is_closed else found.group()
        return Ending(shared[: found.end()] + (last if is_closed else ""), last, last)

    def _ending_by_next_turn(self, messages: Messages, number: int, behind: str, alone: str) -> Ending:
        """The first of the tokenizer's own tokens in what introduces a question behind the
        answer."""
        asked = [*_marked(messages[: number + 1], number, MARK), {"role": "user", "content": SECOND_MARK}]
        between = self.render(asked).partition(MARK)[2].partition(SECOND_MARK)[0]
        found = self.tokens.search(between)
        text = between[: found.end()] if found else ""
        if found and (behind.startswith(text) or text.startswith(behind)):
            of_last = self.tokens.search(alone) or found
            return Ending(text, found.group(), of_last.group())
        raise ChatTemplateError(
            f"the chat template ends an answer with {between.strip()[:40]!r}, in which there is no token of the tokenizer, "
            "so that generation would never stop; write eos_token behind the answer in the template, or add what stands "
            "there to the tokenizer (tokenizer.add_tokens)"
        )


def _for_template(message: Mapping[str, Any]) -> dict[str, Any]:
    thoughts = message.get("thoughts")
    given = {"role": message["role"], "content": message["content"]}
    return given | (dict.fromkeys(THOUGHT_KEYS, thoughts) if thoughts else {})


def _marked(messages: Messages, number: int, mark: str) -> list[Mapping[str, Any]]:
    return [*messages[:number], {**messages[number], "content": mark}, *messages[number + 1 :]]


def _said(rendered: str, before: str, behind: str, content: str) -> str:
    """The answer between two parts of the template's text. Raises ChatTemplateError where it is not
    `content`."""
    said = rendered[len(before) : len(rendered) - len(behind)]
    is_kept = rendered.startswith(before) and rendered.endswith(behind) and said.strip() == content.strip()
    if not is_kept or not said.strip():
        raise ChatTemplateError("the chat template changes what the assistant says; use another template")
    return said


def _dropped_thoughts(number: int) -> ChatTemplateError:
    return ChatTemplateError(
        f"the chat template drops the thoughts of turn {number + 1}; make a row of its own that ends with this turn, or take "
        "the thoughts out of it"
    )


def _refuse_own_tokens(template: _Template, message: Mapping[str, Any], number: int, ending: Ending) -> None:
    """Raises ChatTemplateError for an answer with a text in it that the tokenizer takes for a token
    of its own."""
    control = {*template.processor.tokenizer.all_special_tokens, ending.last, ending.stop, IMAGE_TOKEN}
    words = (message.get("thoughts") or "") + message["content"]
    found = next((token for token in sorted(control) if token in words), None)
    if found is not None:
        raise ChatTemplateError(
            f"the answer in turn {number + 1} contains {found!r}, which the tokenizer takes for a token of its own; write it in other words"
        )


@lru_cache(maxsize=8)
def _own_tokens(tokenizer: PreTrainedTokenizerBase, eos_token: str | None, size: int) -> re.Pattern[str]:
    """Finds the tokens that never arise from words: special ones, and those added by name.

    eos_token, size: of the tokenizer, so that what is added to it later counts.
    """
    names = {*tokenizer.get_added_vocab(), *tokenizer.all_special_tokens} - {IMAGE_TOKEN}
    longest_first = sorted((name for name in names if name.strip()), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
