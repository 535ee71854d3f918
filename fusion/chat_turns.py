"""What the assistant says in the text of a conversation: where each answer begins, where it ends, and which token ends it, under any chat template.

Nothing is searched for in the text. A conversation is rendered twice, the second time with a mark in place of an answer: what stands in front of the mark and
behind it belongs to the template, and what the two texts do not share is the answer, as the template trims it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from os.path import commonprefix
from typing import Any

from transformers import PreTrainedTokenizerBase

from fusion.processing_fusion import FusionProcessor
from vision_core.errors import UserError

MARK, NEXT_MARK = "\ue000answer\ue001", "\ue000next\ue001"  # of Unicode's private use area; no template trims or changes them
OPEN_THOUGHTS = re.compile(r"<think>\s*\Z")
THOUGHTS = re.compile(r"<think>.*?</think>\s*\Z", re.DOTALL)
# what templates call the thoughts of a message: Qwen and most others, gpt-oss, Gemma 4
THOUGHT_KEYS = ("reasoning_content", "thinking", "reasoning")

Messages = Sequence[Mapping[str, Any]]


class ChatTemplateError(UserError):
    """A chat template under which answers cannot be learnt, or not these. The message says why, and the cure."""


@dataclass(frozen=True)
class Answer:
    """text[begin:end]: what the assistant says in a turn, behind the template's own prompt for it, with the tokens that end the turn.

    last: the token at its end. stop: the token with which the template ends a last turn, mostly the same. The model has to learn to say that one here.
    """

    begin: int
    end: int
    last: str
    stop: str


@dataclass(frozen=True)
class RenderedChat:
    """The text of a conversation, BOS included, and an `Answer` for each turn of the assistant."""

    text: str
    answers: tuple[Answer, ...]


def render_chat(processor: FusionProcessor, messages: Messages) -> RenderedChat:
    """A conversation as its text, with its answers found.

    messages: `role`, `content` (text, with an `<image>` where each image stands), and of the assistant `thoughts`, where there are any. A conversation with
    thoughts is rendered with `enable_thinking=True`. A last answer that the template leaves without an end gets the one that a following question
    would give it, and thoughts that a template opens in its prompt but drops from the conversation are put back.

    Raises ChatTemplateError where the template's prompts are not how it writes conversations, changes answers, drops thoughts, or ends an answer with no
    token of the tokenizer; whatever the template itself raises comes through.
    """
    renderer = _Renderer(processor, any(message.get("thoughts") for message in messages))
    text, answers = renderer.render(messages), []
    for number, message in enumerate(messages):
        if message["role"] == "assistant":
            text, answer = _answer(renderer, messages, number, text)
            answers.append(answer)
    return RenderedChat(text, tuple(answers))


def render_prompt(processor: FusionProcessor, messages: Messages, thinking: bool = False) -> str:
    """The text, BOS included, behind which the assistant is to speak: the beginning of what `render_chat` makes of these turns and an answer."""
    return _Renderer(processor, thinking).render(messages, prompt=True)


def answer_in(processor: FusionProcessor, generated: str, thinking: bool = False) -> str:
    """The answer in a generated text that was decoded with its special tokens: without thoughts, names of channels, and the end.

    Of a text that breaks off within its thoughts the answer is empty.
    """
    question, answer = {"role": "user", "content": "a"}, {"role": "assistant", "content": MARK}
    chat = render_chat(processor, [question, answer | ({"thoughts": NEXT_MARK} if thinking else {})])
    own = chat.text[chat.answers[0].begin :].partition(MARK)[0]
    opening = own.rpartition(NEXT_MARK)[2].strip()
    said, ended, _ = generated.partition(chat.answers[0].stop)
    if opening in said:
        said = said.rpartition(opening)[2] if opening else said
    elif thinking and not ended:
        said = ""
    for token in processor.tokenizer.all_special_tokens:
        said = said.replace(token, "")
    return said.strip()


def stop_token_ids(processor: FusionProcessor) -> list[int]:
    """The tokens with which the chat template ends an answer, so that `generate` can stop there. Empty where it refuses even a plain question."""
    question, answer = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
    try:
        stops = {each.stop for each in render_chat(processor, [question, answer]).answers}
    except Exception:  # a template raises what it likes; the rows of a training run are refused with the reason
        return []
    return sorted(processor.tokenizer.convert_tokens_to_ids(stop) for stop in stops)


def add_stops(generation_config: Any, processor: FusionProcessor) -> None:
    """Let generation stop where answers end, beside the stops that it has."""
    known = generation_config.eos_token_id
    known = [] if known is None else [known] if isinstance(known, int) else list(known)
    stops = known + [each for each in stop_token_ids(processor) if each not in known]
    generation_config.eos_token_id = stops[0] if len(stops) == 1 else stops or None


@dataclass(frozen=True)
class _Renderer:
    processor: FusionProcessor
    thinking: bool

    def render(self, messages: Messages, prompt: bool = False) -> str:
        """The text of messages, with the prompt for an answer behind it or not."""
        given = [_for_template(message) for message in messages]
        text = self.processor.apply_chat_template(given, add_generation_prompt=prompt, enable_thinking=self.thinking)
        return self.processor.with_bos(text)

    def around(self, messages: Messages, number: int) -> tuple[str, str]:
        """What the template writes before and behind the content of message `number`. Raises ChatTemplateError where it drops, repeats or changes it."""
        before, found, behind = self.render(_marked(messages, number, MARK)).partition(MARK)
        if not found or MARK in behind:
            raise ChatTemplateError(f"the chat template {'repeats' if found else 'drops'} what the assistant says; use another template")
        return before, behind


def _for_template(message: Mapping[str, Any]) -> dict[str, Any]:
    thoughts = message.get("thoughts")
    return {"role": message["role"], "content": message["content"]} | (dict.fromkeys(THOUGHT_KEYS, thoughts) if thoughts else {})


def _marked(messages: Messages, number: int, mark: str) -> list[Mapping[str, Any]]:
    return [*messages[:number], {**messages[number], "content": mark}, *messages[number + 1 :]]


def _answer(renderer: _Renderer, messages: Messages, number: int, text: str) -> tuple[str, Answer]:
    """The text, completed where the template leaves something out at its end, and the answer of message `number`."""
    before, behind = renderer.around(messages, number)
    said = text[len(before) : len(text) - len(behind)]
    is_same = text.startswith(before) and text.endswith(behind) and said.strip() == messages[number]["content"].strip()
    if not is_same or not said.strip():
        raise ChatTemplateError("the chat template changes what the assistant says; use another template (tokenizer.chat_template)")
    is_last = number == len(messages) - 1
    begin, inserted = _begin(renderer, messages, number, before)
    ending, last, stop = _ending(renderer, messages, number, behind)
    if is_last:
        text = before + inserted + said + (behind if behind.startswith(ending) else ending)
    elif inserted:
        begin, inserted = len(before), ""  # earlier answers stand as the template shows them to those that follow
    thoughts = messages[number].get("thoughts")
    if thoughts and messages[number].get("learnt", True) and thoughts.strip() not in text[begin : len(before) + len(inserted)]:
        raise ChatTemplateError(
            f"the chat template drops the thoughts of turn {number + 1}; make a row of its own that ends with this turn, or take the thoughts out of it"
        )
    return text, Answer(begin, len(before) + len(inserted) + len(said) + len(ending), last, stop)


def _begin(renderer: _Renderer, messages: Messages, number: int, before: str) -> tuple[int, str]:
    """Where the assistant begins to speak, and what the template's prompt for it has that `before`, the conversation in front of the answer, has not.

    Raises ChatTemplateError where the template has words of its own there, or another prompt.
    """
    prompt = renderer.render(messages[:number], prompt=True)
    if before.startswith(prompt):
        own = before[len(prompt) :]
        thoughts = (messages[number].get("thoughts") or "").strip()
        if _is_markup(own.replace(thoughts, "", 1) if thoughts else own, renderer.processor.tokenizer):
            return len(prompt), ""
        raise ChatTemplateError(
            f"the chat template puts {own.strip()!r} in front of answers, behind its prompt for them; use another template"
        )
    extra = prompt[len(before) :]
    if prompt.startswith(before) and OPEN_THOUGHTS.search(extra):
        thoughts = (messages[number].get("thoughts") or "").strip()
        return len(prompt), f"{extra}{thoughts}\n</think>\n\n"
    if prompt.startswith(before) and THOUGHTS.search(extra):
        return len(prompt), extra
    raise ChatTemplateError(
        "the chat template's prompt for an answer is not how it writes an answer in a conversation, so that the model would be asked otherwise than it was "
        "trained; use another template (tokenizer.chat_template), or one answer per conversation"
    )


def _is_markup(own: str, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a model is to write this itself: spaces, thoughts, or names of channels that end in one of the tokenizer's own tokens."""
    own = own.strip()
    tokens = _added_tokens(tokenizer, len(tokenizer))
    ends_in_token = any(match.end() == len(own) for match in tokens.finditer(own))
    return not own or ends_in_token or THOUGHTS.search(own) is not None


def _ending(renderer: _Renderer, messages: Messages, number: int, behind: str) -> tuple[str, str, str]:
    """What ends the answer of message `number`, the token at the end of that, and the token that ends a last answer.

    behind: what follows the answer in the conversation. The turn's own ending is what that shares with the text of a conversation that ends here; a
    template that has none ends a turn with what introduces the next one.
    """
    tokenizer = renderer.processor.tokenizer
    tokens = _added_tokens(tokenizer, len(tokenizer))
    here = messages[: number + 1]
    alone = renderer.around(here, number)[1]
    shared = commonprefix([behind, alone])
    found = tokens.search(shared)
    if found:
        is_closed = tokenizer.eos_token is not None and shared.startswith(tokenizer.eos_token, found.end())
        last = tokenizer.eos_token if is_closed else found.group()
        return shared[: found.end()] + (last if is_closed else ""), last, last
    asked = [*_marked(here, number, MARK), {"role": "user", "content": NEXT_MARK}]
    between = renderer.render(asked).partition(MARK)[2].partition(NEXT_MARK)[0]
    found = tokens.search(between)
    ending = between[: found.end()] if found else ""
    if found and (behind.startswith(ending) or ending.startswith(behind)):
        return ending, found.group(), (tokens.search(alone) or found).group()
    raise ChatTemplateError(
        f"the chat template ends an answer with {between.strip()[:40]!r}, in which there is no token of the tokenizer, so that generation would never stop; "
        "write eos_token behind the answer in the template, or add what stands there to the tokenizer (tokenizer.add_tokens)"
    )


@lru_cache(maxsize=8)
def _added_tokens(tokenizer: PreTrainedTokenizerBase, size: int) -> re.Pattern[str]:
    """Finds the tokens that never arise from words: special ones, and those added by name. size: of the tokenizer, so that tokens added later count."""
    names = {*tokenizer.get_added_vocab(), *tokenizer.all_special_tokens} - {"<image>"}
    longest_first = sorted((name for name in names if name.strip()), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
