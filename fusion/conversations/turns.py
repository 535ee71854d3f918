"""One turn of a row: who speaks, the text, the images shown in it, the thoughts before an answer,
whether it is learnt.

Turns are spelled in the ways of LLaVA and ShareGPT (`from`, `value`), of chat templates and the
OpenAI API (`role`, `content`) and of axolotl, ms-swift and LLaMA-Factory. What a turn says by any
of their keys is used or refused; keys that none of them gives a meaning are ignored
(`unread_turn_keys` names them).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fusion.conversations.conversation import IMAGE, BadRow, Message, quoted
from fusion.conversations.placeholders import refuse_placeholders

ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "developer": "system",  # OpenAI's newer name for it
}
CALLING_ROLES = ("function_call", "tool_call")
ANSWERING_ROLES = ("tool", "function", "function_response", "tool_response", "observation", "ipython")
TOOL_ROLES = (*CALLING_ROLES, *ANSWERING_ROLES)
TOOLS_CURE = (
    "calls of tools are not trained; leave such rows out, or write the calls and their results as plain text"
)
FILM_CURE = "only images are seen and only text is read; leave such rows out (of a video, frames can be given as images)"
ROLE_KEYS = ("from", "role")
TEXT_KEYS = ("value", "content")
# vLLM, SGLang and the APIs of DeepSeek and Qwen; OpenRouter and newer vLLM; gpt-oss; ours
THOUGHT_KEYS = ("reasoning_content", "reasoning", "thinking", "thoughts")
# the OpenAI API and ShareGPT for axolotl; ms-swift; axolotl's chat_template, twice
LEARNT_KEYS = ("weight", "loss", "train", "training")
READ_TURN_KEYS = {*ROLE_KEYS, *TEXT_KEYS, *THOUGHT_KEYS, *LEARNT_KEYS}
REFUSED_TURN_KEYS = {
    **dict.fromkeys(("tool_calls", "tool_call_id", "function_call", "tools", "functions"), TOOLS_CURE),
    **dict.fromkeys(("video", "videos", "audio", "audios"), FILM_CURE),
    **dict.fromkeys(
        ("image", "images"), "give images in `images` of the row, or in parts of the turn's `content`"
    ),
    "prefix": "an answer that somebody else has begun is not trained; write the whole answer as the assistant's turn",
    "train_detail": "answers are learnt whole or not at all; split the turn, or give `train` true or false",
    **dict.fromkeys(
        ("mask", "loss_mask", "loss_scale"), "say whether an answer is learnt by `weight`, 1 or 0"
    ),
}
IMAGE_PART_KEYS = ("image", "path", "url", "base64", "image_url")
HALF_CHARACTER = re.compile("[\ud800-\udfff]")
FILM_PARTS = ("video", "video_url", "input_video", "audio", "audio_url", "input_audio")


@dataclass(frozen=True)
class ShownImage:
    """The image of a part of a turn.

    image: as the part has it, or None for the next image of the row. index: or which image of the
    row it is.
    """

    image: Any = None
    index: int | None = None


@dataclass(frozen=True)
class Turn:
    """A message, and one `ShownImage` for each of its parts of type image."""

    message: Message
    shown: tuple[ShownImage, ...] = ()


def read_turn(turn: Any, where: str) -> Turn:
    """A turn, checked. Raises BadRow."""
    if not isinstance(turn, Mapping):
        raise BadRow(f"{where}: a turn is {type(turn).__name__}, not an object with role and text")
    refuse_keys(turn, REFUSED_TURN_KEYS, "a turn", where)
    role = _role(turn, where)
    text, shown = _text_and_images(one_value(turn, TEXT_KEYS, "a turn's text", where), where)
    thoughts = one_value(turn, THOUGHT_KEYS, "a turn's thoughts", where)
    learnt = _is_learnt(turn, role, where)
    if role == "assistant":
        thoughts, text = _thoughts_and_answer(thoughts, text, where)
    elif not is_nothing(thoughts):
        raise BadRow(
            f"{where}: a turn of the {role} has thoughts; only the assistant thinks, give them to its answer"
        )
    for each in (text, thoughts or ""):
        _refuse_broken_text(each, where)
        refuse_placeholders(each, role, where)
    if role != "user" and IMAGE in text:
        raise BadRow(f"{where}: {IMAGE} stands in a turn of the {role}; images are shown by the user")
    return Turn(Message(role, text, thoughts or "", learnt), shown)


def read_pair(pair: Any, where: str) -> tuple[Turn, Turn]:
    """The question and the answer of an object with `user` and `assistant`, as FineVision has it.
    Raises BadRow."""
    if not isinstance(pair, Mapping):
        raise BadRow(
            f"{where}: an element of `texts` is {type(pair).__name__}, not an object with user and assistant"
        )
    refuse_keys(pair, REFUSED_TURN_KEYS, "an element of `texts`", where)
    flags = {key: pair[key] for key in LEARNT_KEYS if key in pair}
    question = read_turn({"role": "user", "content": pair.get("user")}, where)
    system = one_system(pair.get("system"), where)
    if system:
        raise BadRow(
            f"{where}: an element of `texts` has a `system` of its own; give one in `system` of the row"
        )
    return question, read_turn({"role": "assistant", "content": pair.get("assistant"), **flags}, where)


def unread_turn_keys(turn: Any) -> set[str]:
    """The keys of a turn, or of a pair of `texts`, that nothing reads and that have a value."""
    if not isinstance(turn, Mapping):
        return set()
    read = READ_TURN_KEYS | REFUSED_TURN_KEYS.keys() | ({"user", "assistant"} if "user" in turn else set())
    return {str(key) for key, value in turn.items() if key not in read and not is_nothing(value)}


def is_nothing(value: Any) -> bool:
    """Whether a key says nothing.

    Tables and converters fill what a row lacks with null, false, empty text, lists and objects, or
    JSON of those.
    """
    if isinstance(value, Mapping):
        return all(is_nothing(each) for each in value.values())
    if isinstance(value, str):
        return value.strip() in ("", "[]", "{}", "null")
    return value is None or value is False or (isinstance(value, Sequence) and not len(value))


def refuse_keys(given: Mapping[str, Any], cures: Mapping[str, str], what: str, where: str) -> None:
    """Raises BadRow for a key of `cures` that says something."""
    for key, cure in cures.items():
        if not is_nothing(given.get(key)):
            raise BadRow(f"{where}: {what} has `{key}` ({quoted(given[key])}), which is not used: {cure}")


def one_value(given: Mapping[str, Any], keys: Sequence[str], what: str, where: str) -> Any:
    """The value that `given` has under any of several keys, or None. Raises BadRow where two keys
    differ."""
    found = {key: given[key] for key in keys if given.get(key) is not None}
    values = list(found.values())
    if any(value != values[0] for value in values[1:]):
        places = " and in ".join(f"`{key}`" for key in found)
        raise BadRow(f"{where}: {what} stands in {places}, and they differ; keep the right one")
    return values[0] if values else None


def one_system(text: Any, where: str) -> str:
    """The text of a system prompt outside the turns, or "" where there is none. Raises BadRow."""
    if is_nothing(text):
        return ""
    if not isinstance(text, str):
        raise BadRow(
            f"{where}: `system` is {type(text).__name__}, not text; write the system prompt as one text"
        )
    return read_turn({"role": "system", "content": text}, where).message.text


def _role(turn: Mapping[str, Any], where: str) -> str:
    role = one_value(turn, ROLE_KEYS, "a turn's speaker", where)
    if isinstance(role, str) and role in TOOL_ROLES:
        raise BadRow(f"{where}: a turn is spoken by {role!r}: {TOOLS_CURE}")
    if not isinstance(role, str) or role not in ROLES:
        raise BadRow(f"{where}: a turn is spoken by {quoted(role)}; known: {', '.join(ROLES)}")
    return ROLES[role]


def _is_learnt(turn: Mapping[str, Any], role: str, where: str) -> bool:
    """Weight 0, `loss: false` and `train: false` say that an answer is not learnt; without any of
    them it is."""
    said = {key: turn[key] for key in LEARNT_KEYS if turn.get(key) is not None}
    for key, value in said.items():
        if not isinstance(value, int | float) or value not in (0, 1):
            cure = "an answer is learnt (1, true) or not (0, false): give one of them"
            raise BadRow(f"{where}: a turn has `{key}` {quoted(value)}; {cure}")
    if len({bool(value) for value in said.values()}) > 1:
        keys = " and ".join(f"`{key}`" for key in said)
        raise BadRow(f"{where}: {keys} of a turn contradict each other; keep one of them")
    learnt = all(said.values())
    if role != "assistant" and said and learnt:
        key = next(iter(said))
        reason = f"a turn of the {role} is to be learnt (`{key}` {quoted(said[key])})"
        raise BadRow(f"{where}: {reason}; only answers are, take `{key}` out or set it to 0")
    return learnt if role == "assistant" else True


def _thoughts_and_answer(given: Any, text: str, where: str) -> tuple[str, str]:
    """(thoughts, answer): the text in front of `</think>` is thoughts, with or without the opening
    `<think>`.

    Distills of DeepSeek-R1 write no opening mark. Only a text that begins with `<think>`, or has no
    `<think>` in front of its first `</think>`, is taken apart. Line breaks around the marks belong
    to them, as in Qwen3's template.
    """
    if given is not None and not isinstance(given, str):
        raise BadRow(f"{where}: a turn's thoughts are {type(given).__name__}, not text")
    head, mark, tail = text.partition("</think>")
    is_opened = head.lstrip().startswith("<think>")
    if is_opened and not mark:
        cure = "close its thoughts, or leave the row out"
        raise BadRow(f"{where}: an answer begins with <think>, and there is no </think>; {cure}")
    if not mark or ("<think>" in head and not is_opened):
        return given or "", text
    thoughts = head.lstrip().removeprefix("<think>").strip("\n")
    if given and thoughts and given.strip() != thoughts.strip():
        raise BadRow(
            f"{where}: an answer has thoughts of its own and others in front of </think>; keep the right ones"
        )
    return given or thoughts, tail.lstrip("\n")


def _text_and_images(content: Any, where: str) -> tuple[str, tuple[ShownImage, ...]]:
    if isinstance(content, str):
        return content, ()
    if not isinstance(content, Sequence) or isinstance(content, bytes):
        raise BadRow(f"{where}: a turn's text is {type(content).__name__}, not text or a list of parts")
    texts, shown = [], []
    for part in content:
        read = _read_part(part, where)
        texts.append(read if isinstance(read, str) else f"{IMAGE}\n")
        shown += [] if isinstance(read, str) else [read]
    return "".join(texts), tuple(shown)


def _read_part(part: Any, where: str) -> str | ShownImage:
    if not isinstance(part, Mapping):
        raise BadRow(f"{where}: a part of a turn is {type(part).__name__}, not an object with type")
    kind = part.get("type")
    if kind in ("image", "image_url"):
        return _shown_image(part, where)
    if kind == "text" and isinstance(part.get("text"), str):
        cures = dict.fromkeys(IMAGE_PART_KEYS, "give it a part of type image of its own")
        refuse_keys(part, cures, "a part of type text", where)
        return part["text"]
    if isinstance(kind, str) and kind in FILM_PARTS:
        raise BadRow(f"{where}: a part of a turn is of type {kind!r}: {FILM_CURE}")
    if isinstance(kind, str) and kind in ("thinking", "reasoning"):
        raise BadRow(
            f"{where}: a part of a turn is of type {kind!r}; write it into `reasoning_content` of the turn"
        )
    raise BadRow(
        f"{where}: a part of a turn is of type {quoted(kind)}; known: text (with `text`), image, image_url"
    )


def _shown_image(part: Mapping[str, Any], where: str) -> ShownImage:
    """The image of a part: `{"type": "image", "image": ...}`, or `path`, `url` or `base64` in the
    place of `image`.

    Or, as the OpenAI API has it, `{"type": "image_url", "image_url": {"url": ...}}`.
    """
    cure = 'write {"type": "image", "image": "data:image/png;base64,..."}'
    refuse_keys(part, {"source": cure, "text": "give text a part of its own"}, "a part of type image", where)
    given = {key: _address(part[key], key) for key in IMAGE_PART_KEYS if not is_nothing(part.get(key))}
    image = one_value(given, IMAGE_PART_KEYS, "the image of a part", where)
    index = part.get("index")
    if index is not None and (not isinstance(index, int) or isinstance(index, bool)):
        raise BadRow(
            f"{where}: `index` of a part of type image is {quoted(index)}; give the number of an image"
        )
    if image is None and part["type"] == "image_url":
        raise BadRow(f'{where}: a part of type image_url has no `image_url`; write {{"url": ...}} into it')
    return ShownImage(image, index if image is None else None)


def _address(value: Any, key: str) -> Any:
    if key == "image_url" and isinstance(value, Mapping):
        return value.get("url")
    if key == "base64" and isinstance(value, str):
        return f"data:image/any;base64,{value}"
    return value


def _refuse_broken_text(text: str, where: str) -> None:
    """Half of a surrogate pair, which JSON can hold, is no character, and no tokenizer reads it."""
    if HALF_CHARACTER.search(text):
        raise BadRow(
            f"{where}: a text has half of a character ({quoted(text)}); write the file anew, in UTF-8"
        )
