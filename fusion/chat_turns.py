"""Find the assistant's answers in the text of a conversation: where each begins and ends, and which
token ends it.

The text is not searched for answers, so this works with any chat template. A conversation is
rendered twice, the second time with a mark in place of an answer. The text before and behind the
mark belongs to the template. What the two texts do not share is the answer, as the template trims
it.
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

# Characters of Unicode's private use area, which no template changes.
MARK = "\ue000answer\ue001"
SECOND_MARK = "\ue000more\ue001"
OPEN_THOUGHTS = re.compile(r"<think>\s*\Z")
THOUGHTS = re.compile(r"<think>.*?</think>\s*\Z", re.DOTALL)
# The names that templates give to the thoughts of a message: Qwen and most others, gpt-oss, Gemma 4.
THOUGHT_KEYS = ("reasoning_content", "thinking", "reasoning")

Messages = Sequence[Mapping[str, Any]]


class ChatTemplateError(UserError):
    """Answers cannot be learnt under a chat template. The message says why, and the cure."""


@dataclass(frozen=True)
class Answer:
    """The place text[begin:end] of what the assistant says in a turn, behind the prompt for it and
    with the tokens that end the turn.

    last: the token at its end. stop: the token with which the template ends a last turn, mostly the
    same one. The model has to learn to say `stop` here.
    """

    begin: int
    end: int
    last: str
    stop: str


@dataclass(frozen=True)
class RenderedChat:
    """The text of a conversation, with BOS, and an `Answer` for each learnt turn of the assistant."""

    text: str
    answers: tuple[Answer, ...]


@dataclass(frozen=True)
class Beginning:
    """The text between the conversation so far and the words of an answer.

    own: the part of the template's text in front of the answer that the assistant has to say itself.
    prompt, learnt: text that is inserted there; the prompt writes the first part and the assistant
    the second.
    """

    own: str = ""
    prompt: str = ""
    learnt: str = ""


@dataclass(frozen=True)
class Ending:
    """The text that ends an answer. last: the token at its end. stop: the token that ends a last
    answer."""

    text: str
    last: str
    stop: str


def render_chat(processor: FusionProcessor, messages: Messages) -> RenderedChat:
    """Render a conversation as text, and find its learnt answers.

    messages: each has `role` and `content` (text with an `<image>` for each image); those of the
    assistant may have `thoughts`, and `learnt` false. A conversation with thoughts is rendered with
    `enable_thinking=True`.

    Three things that a template leaves out are completed. A last answer without an end gets the end
    that a following question would give it. Thoughts that the prompt opens, and that the
    conversation lacks, are put back. An earlier answer gets the empty thoughts of its prompt, so
    that it is learnt behind the prompt that asks for it.

    Raises ChatTemplateError where the template's prompts differ from how it writes conversations,
    where it changes answers or drops thoughts, where an answer contains one of the tokenizer's own
    tokens, or where none of them ends it. Errors of the template itself are passed on.
    """
    is_thinking = any(message.get("thoughts") for message in messages)
    template = _Template(processor, is_thinking)
    rendered = template.render(messages)
    learnt = _learnt_turns(messages)
    if not learnt:
        return RenderedChat(rendered, ())
    around = {number: template.around(messages, number) for number in learnt}
    last = learnt[-1]
    last_ending = template.ending(messages, last, around[last][1])
    text = ""
    copied = 0  # characters of `rendered` that are in `text` already
    answers = []
    for number in learnt:
        before, behind = around[number]
        spoken = _spoken_between(rendered, before, behind, messages[number]["content"])
        beginning = template.beginning(messages, number, before)
        ending = last_ending
        if number != last and not behind.startswith(last_ending.text):
            ending = template.ending(messages, number, behind)
        _refuse_own_tokens(template, messages[number], number, ending)
        text += rendered[copied : len(before)]
        begin = len(text) - len(beginning.own) + len(beginning.prompt)
        text += beginning.prompt + beginning.learnt + spoken
        end = len(text) + len(ending.text)
        answers.append(Answer(begin, end, ending.last, ending.stop))
        copied = len(before) + len(spoken)
    rest = rendered[copied:]
    if not rest.startswith(last_ending.text):
        rest = last_ending.text
    return RenderedChat(text + rest, tuple(answers))


def _learnt_turns(messages: Messages) -> list[int]:
    """The numbers of the assistant's messages that are learnt."""
    numbers = []
    for number, message in enumerate(messages):
        if message["role"] == "assistant" and message.get("learnt", True):
            numbers.append(number)
    return numbers


def render_prompt(processor: FusionProcessor, messages: Messages, thinking: bool = False) -> str:
    """Render the text, with BOS, behind which the assistant is to speak: what `render_chat` has in
    front of an answer."""
    return _Template(processor, thinking).render(messages, prompt=True)


def answer_in(processor: FusionProcessor, generated: str, thinking: bool = False) -> str:
    """Take the answer out of a generated text that was decoded with its special tokens: without
    thoughts, names of channels, and end.

    The answer is empty where the text breaks off before it.
    """
    chat = _probe(processor, thinking)
    own = chat.text[chat.answers[0].begin :].partition(MARK)[0]
    opening = own.rpartition(SECOND_MARK)[2].strip()
    answer, ended, _ = generated.partition(chat.answers[0].stop)
    if opening and opening in answer:
        answer = answer.rpartition(opening)[2]
    elif opening and not ended:
        answer = ""
    for token in processor.tokenizer.all_special_tokens:
        answer = answer.replace(token, "")
    return answer.strip()


def stop_token_ids(processor: FusionProcessor) -> list[int]:
    """Find the tokens with which the chat template ends an answer.

    Raises ChatTemplateError where no answer can be learnt.
    """
    stops = {answer.stop for answer in _probe(processor).answers}
    return sorted(map(processor.tokenizer.convert_tokens_to_ids, stops))


def add_stops(generation_config: Any, processor: FusionProcessor) -> None:
    """Make generation stop where answers end, in addition to the stops that it has.

    The end becomes a special token, so that `skip_special_tokens=True` leaves it out of a decoded
    answer. Warns where no answer can be learnt under the chat template.
    """
    try:
        ends = stop_token_ids(processor)
    except ChatTemplateError as error:
        warnings.warn(f"no answer can be learnt under this chat template: {error}", stacklevel=2)
        return
    tokens = processor.tokenizer.convert_ids_to_tokens(ends)
    special_tokens = {"additional_special_tokens": tokens}
    processor.tokenizer.add_special_tokens(special_tokens, replace_extra_special_tokens=False)
    stops = []
    if generation_config.eos_token_id is not None:
        stops = torch.as_tensor(generation_config.eos_token_id).flatten().tolist()
    for end in ends:
        if end not in stops:
            stops.append(end)
    generation_config.eos_token_id = stops[0] if len(stops) == 1 else stops


def _probe(processor: FusionProcessor, thinking: bool = False) -> RenderedChat:
    """Render a question and the answer `MARK`, behind the thoughts `SECOND_MARK` if `thinking`, and
    with a system turn where the template wants one."""
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
        """A pattern that finds the tokenizer's own tokens in a text."""
        tokenizer = self.processor.tokenizer
        return _own_tokens(tokenizer, tokenizer.eos_token, len(tokenizer))

    def render(self, messages: Messages, prompt: bool = False) -> str:
        """Render messages as text; prompt: with the prompt for an answer behind it."""
        given = [_for_template(message) for message in messages]
        text = self.processor.apply_chat_template(
            given, add_generation_prompt=prompt, enable_thinking=self.thinking
        )
        return self.processor.with_bos(text)

    def around(self, messages: Messages, number: int) -> tuple[str, str]:
        """Find what the template writes before and behind the content of message `number`.

        Raises ChatTemplateError where the template repeats or drops the content.
        """
        before, found, behind = self.render(_with_mark(messages, number, MARK)).partition(MARK)
        if not found or MARK in behind:
            fault = "repeats" if found else "drops"
            raise ChatTemplateError(
                f"the chat template {fault} what the assistant says; use another template"
            )
        return before, behind

    def beginning(self, messages: Messages, number: int, before: str) -> Beginning:
        """Find how the answer of message `number` begins; before: the conversation up to it.

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
            closing = "</think>\n\n"
            return Beginning(prompt=extra, learnt=f"{thoughts}\n{closing}" if thoughts else closing)
        if prompt.startswith(before) and THOUGHTS.search(extra):
            if thoughts:
                raise _dropped_thoughts(number)
            return Beginning(prompt=extra)
        raise ChatTemplateError(
            "the chat template's prompt for an answer is not how it writes an answer in a conversation, so "
            "that the model would be asked otherwise than it was trained; use another template, or one answer "
            "per conversation"
        )

    def _refuse_words(self, own: str) -> None:
        """Raise ChatTemplateError for words in front of an answer. A model may have to write only
        spaces, thoughts, and names of channels that end in one of the tokenizer's own tokens."""
        own = own.strip()
        ends_in_token = any(match.end() == len(own) for match in self.tokens.finditer(own))
        if own and not ends_in_token and not THOUGHTS.search(own):
            raise ChatTemplateError(
                f"the chat template puts {own!r} in front of answers, behind its prompt for them; "
                "use another template"
            )

    def ending(self, messages: Messages, number: int, behind: str) -> Ending:
        """Find what ends the answer of message `number`; behind: the text that follows the answer.

        The end is what the conversation shares with a conversation that ends here, up to the first
        of the tokenizer's own tokens, and the end of text where that follows. Raises
        ChatTemplateError where there is no such token.
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
        """Find an end up to the first of the tokenizer's own tokens in what introduces a question
        behind the answer."""
        asked = [*_with_mark(messages[: number + 1], number, MARK), {"role": "user", "content": SECOND_MARK}]
        between = self.render(asked).partition(MARK)[2].partition(SECOND_MARK)[0]
        found = self.tokens.search(between)
        text = between[: found.end()] if found else ""
        if found and (behind.startswith(text) or text.startswith(behind)):
            of_last = self.tokens.search(alone) or found
            return Ending(text, found.group(), of_last.group())
        raise ChatTemplateError(
            f"the chat template ends an answer with {between.strip()[:40]!r}, in which there is no token of "
            "the tokenizer, so that generation would never stop; write eos_token behind the answer in the "
            "template, or add what stands there to the tokenizer (tokenizer.add_tokens)"
        )


def _for_template(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message with the keys that chat templates read."""
    given = {"role": message["role"], "content": message["content"]}
    thoughts = message.get("thoughts")
    if thoughts:
        given |= dict.fromkeys(THOUGHT_KEYS, thoughts)
    return given


def _with_mark(messages: Messages, number: int, mark: str) -> list[Mapping[str, Any]]:
    """The messages with `mark` as the content of message `number`."""
    return [*messages[:number], {**messages[number], "content": mark}, *messages[number + 1 :]]


def _spoken_between(rendered: str, before: str, behind: str, content: str) -> str:
    """Take the answer from between two parts of the template's text.

    Raises ChatTemplateError where it is not `content`.
    """
    spoken = rendered[len(before) : len(rendered) - len(behind)]
    is_kept = rendered.startswith(before) and rendered.endswith(behind) and spoken.strip() == content.strip()
    if not is_kept or not spoken.strip():
        raise ChatTemplateError("the chat template changes what the assistant says; use another template")
    return spoken


def _dropped_thoughts(number: int) -> ChatTemplateError:
    return ChatTemplateError(
        f"the chat template drops the thoughts of turn {number + 1}; make a row of its own that ends with "
        "this turn, or take the thoughts out of it"
    )


def _refuse_own_tokens(template: _Template, message: Mapping[str, Any], number: int, ending: Ending) -> None:
    """Raise ChatTemplateError for an answer that contains the text of one of the tokenizer's own
    tokens."""
    control = {*template.processor.tokenizer.all_special_tokens, ending.last, ending.stop, IMAGE_TOKEN}
    words = (message.get("thoughts") or "") + message["content"]
    found = next((token for token in sorted(control) if token in words), None)
    if found is not None:
        raise ChatTemplateError(
            f"the answer in turn {number + 1} contains {found!r}, which the tokenizer takes for a token of "
            "its own; write it in other words"
        )


@lru_cache(maxsize=8)
def _own_tokens(tokenizer: PreTrainedTokenizerBase, eos_token: str | None, size: int) -> re.Pattern[str]:
    """A pattern that finds the tokens that never arise from words: special tokens, and tokens that
    were added by name.

    eos_token, size: these values of the tokenizer are a part of the cache's key, so that tokens
    that are added later count.
    """
    names = {*tokenizer.get_added_vocab(), *tokenizer.all_special_tokens} - {IMAGE_TOKEN}
    longest_first = sorted(filter(str.strip, names), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
