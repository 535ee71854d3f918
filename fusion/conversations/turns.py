"""Reads one turn of a row: its speaker, text, images, thoughts, and whether it is learnt.

Turns may be spelled as in LLaVA and ShareGPT (`from`, `value`), as in chat templates and the OpenAI
API (`role`, `content`), or as in axolotl, ms-swift and LLaMA-Factory. What a turn says by any of
their keys is used or refused. Keys that have no meaning in any of them are ignored, and
`unread_turn_keys` names them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fusion.conversations.conversation import IMAGE, BadRow, Message, quote
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
FILM_CURE = (
    "only images are seen and only text is read; "
    "leave such rows out (of a video, frames can be given as images)"
)
IMAGE_KEY_CURE = "give images in `images` of the row, or in parts of the turn's `content`"
LOSS_MASK_CURE = "say whether an answer is learnt by `weight`, 1 or 0"
ROLE_KEYS = ("from", "role")
TEXT_KEYS = ("value", "content")
# of vLLM, SGLang and the APIs of DeepSeek and Qwen; of OpenRouter and newer vLLM; of gpt-oss; of
# this project
THOUGHT_KEYS = ("reasoning_content", "reasoning", "thinking", "thoughts")
# of the OpenAI API and ShareGPT for axolotl; of ms-swift; two of axolotl's chat_template
LEARNT_KEYS = ("weight", "loss", "train", "training")
READ_TURN_KEYS = {*ROLE_KEYS, *TEXT_KEYS, *THOUGHT_KEYS, *LEARNT_KEYS}
REFUSED_TURN_KEYS = {
    **dict.fromkeys(("tool_calls", "tool_call_id", "function_call", "tools", "functions"), TOOLS_CURE),
    **dict.fromkeys(("video", "videos", "audio", "audios"), FILM_CURE),
    **dict.fromkeys(("image", "images"), IMAGE_KEY_CURE),
    "prefix": "an answer that somebody else has begun is not trained; "
    "write the complete answer as the assistant's turn",
    "train_detail": "answers are learnt completely or not at all; "
    "split the turn, or give `train` true or false",
    **dict.fromkeys(("mask", "loss_mask", "loss_scale"), LOSS_MASK_CURE),
}
IMAGE_PART_KEYS = ("image", "path", "url", "base64", "image_url")
HALF_CHARACTER = re.compile("[\ud800-\udfff]")
FILM_PART_TYPES = ("video", "video_url", "input_video", "audio", "audio_url", "input_audio")


@dataclass(frozen=True)
class ShownImage:
    """The image that a part of a turn shows.

    image: the image as the part has it, or None where it is an image of the row.
    index: the number of that image of the row, or None for the next one.
    """

    image: Any = None
    index: int | None = None


@dataclass(frozen=True)
class Turn:
    """A message, and one `ShownImage` for each of its parts of type image."""

    message: Message
    shown: tuple[ShownImage, ...] = ()


def read_turn(turn: Any, where: str) -> Turn:
    """The turn, checked. Raises BadRow."""
    if not isinstance(turn, Mapping):
        raise BadRow(f"{where}: a turn is {type(turn).__name__}, not an object with role and text")
    refuse_keys(turn, REFUSED_TURN_KEYS, "a turn", where)
    role = _read_role(turn, where)
    text, shown = _read_content(one_value(turn, TEXT_KEYS, "a turn's text", where), where)
    thoughts = one_value(turn, THOUGHT_KEYS, "a turn's thoughts", where)
    learnt = _is_learnt(turn, role, where)
    if role == "assistant":
        thoughts, text = _split_thoughts(thoughts, text, where)
    elif not is_nothing(thoughts):
        cure = "only the assistant thinks, give them to its answer"
        raise BadRow(f"{where}: a turn of the {role} has thoughts; {cure}")
    for words in (text, thoughts or ""):
        _refuse_half_characters(words, where)
        refuse_placeholders(words, role, where)
    if role != "user" and IMAGE in text:
        raise BadRow(f"{where}: {IMAGE} stands in a turn of the {role}; images are shown by the user")
    return Turn(Message(role, text, thoughts or "", learnt), shown)


def read_pair(pair: Any, where: str) -> tuple[Turn, Turn]:
    """The question and the answer of an object with `user` and `assistant`, as FineVision has it.

    Raises BadRow.
    """
    if not isinstance(pair, Mapping):
        kind = type(pair).__name__
        raise BadRow(f"{where}: an element of `texts` is {kind}, not an object with user and assistant")
    refuse_keys(pair, REFUSED_TURN_KEYS, "an element of `texts`", where)
    question = read_turn({"role": "user", "content": pair.get("user")}, where)
    if read_system_prompt(pair.get("system"), where):
        cure = "give one in `system` of the row"
        raise BadRow(f"{where}: an element of `texts` has a `system` of its own; {cure}")
    answer = {"role": "assistant", "content": pair.get("assistant")}
    for key in LEARNT_KEYS:
        if key in pair:
            answer[key] = pair[key]
    return question, read_turn(answer, where)


def unread_turn_keys(turn: Any) -> set[str]:
    """The keys of a turn, or of a pair of `texts`, that nothing reads and that have a value."""
    if not isinstance(turn, Mapping):
        return set()
    read = READ_TURN_KEYS | REFUSED_TURN_KEYS.keys()
    if "user" in turn:
        read |= {"user", "assistant"}
    return {str(key) for key, value in turn.items() if key not in read and not is_nothing(value)}


def is_nothing(value: Any) -> bool:
    """Whether the value of a key says nothing.

    Tables and converters fill what a row lacks with null, false, empty texts, lists and objects, or
    with JSON of those.
    """
    if isinstance(value, Mapping):
        return all(map(is_nothing, value.values()))
    if isinstance(value, str):
        return value.strip() in ("", "[]", "{}", "null")
    return value is None or value is False or (isinstance(value, Sequence) and not len(value))


def refuse_keys(given: Mapping[str, Any], cures: Mapping[str, str], what: str, where: str) -> None:
    """Raises BadRow for a key of `cures` that says something."""
    for key, cure in cures.items():
        if not is_nothing(given.get(key)):
            raise BadRow(f"{where}: {what} has `{key}` ({quote(given[key])}), which is not used: {cure}")


def one_value(given: Mapping[str, Any], keys: Sequence[str], what: str, where: str) -> Any:
    """The value that `given` has under any of several keys, or None.

    Raises BadRow where the values of two keys differ.
    """
    found = [key for key in keys if given.get(key) is not None]
    if not found:
        return None
    value = given[found[0]]
    for key in found[1:]:
        if given[key] != value:
            places = " and in ".join(map("`{}`".format, found))
            raise BadRow(f"{where}: {what} stands in {places}, and they differ; keep the right one")
    return value


def read_system_prompt(text: Any, where: str) -> str:
    """The text of a system prompt outside the turns, or "" where there is none. Raises BadRow."""
    if is_nothing(text):
        return ""
    if not isinstance(text, str):
        kind = type(text).__name__
        raise BadRow(f"{where}: `system` is {kind}, not text; write the system prompt as one text")
    return read_turn({"role": "system", "content": text}, where).message.text


def _read_role(turn: Mapping[str, Any], where: str) -> str:
    role = one_value(turn, ROLE_KEYS, "a turn's speaker", where)
    if isinstance(role, str) and role in TOOL_ROLES:
        raise BadRow(f"{where}: a turn is spoken by {role!r}: {TOOLS_CURE}")
    if not isinstance(role, str) or role not in ROLES:
        raise BadRow(f"{where}: a turn is spoken by {quote(role)}; known: {', '.join(ROLES)}")
    return ROLES[role]


def _is_learnt(turn: Mapping[str, Any], role: str, where: str) -> bool:
    """Whether an answer is learnt; True for turns of others, for which this has no meaning.

    Weight 0, `loss: false` and `train: false` say that it is not; without any of them it is. Raises
    BadRow.
    """
    flags = {key: turn[key] for key in LEARNT_KEYS if turn.get(key) is not None}
    for key, value in flags.items():
        if not isinstance(value, int | float) or value not in (0, 1):
            cure = "an answer is learnt (1, true) or not (0, false): give one of them"
            raise BadRow(f"{where}: a turn has `{key}` {quote(value)}; {cure}")
    learnt = all(flags.values())
    if not learnt and any(flags.values()):
        keys = " and ".join(map("`{}`".format, flags))
        raise BadRow(f"{where}: {keys} of a turn contradict each other; keep one of them")
    if role == "assistant":
        return learnt
    if flags and learnt:
        key = next(iter(flags))
        reason = f"a turn of the {role} is to be learnt (`{key}` {quote(flags[key])})"
        raise BadRow(f"{where}: {reason}; only answers are, take `{key}` out or set it to 0")
    return True


def _split_thoughts(given: Any, text: str, where: str) -> tuple[str, str]:
    """(thoughts, answer) of an answer's text, where the part in front of `</think>` is thoughts.

    The opening `<think>` may be missing, as in distills of DeepSeek-R1. Only a text that begins with
    `<think>`, or has no `<think>` in front of its first `</think>`, is taken apart. Line breaks
    around the marks belong to them, as in Qwen3's template.

    given: the thoughts that have a key of their own.
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
        fault = "an answer has thoughts of its own and others in front of </think>"
        raise BadRow(f"{where}: {fault}; keep the right ones")
    return given or thoughts, tail.lstrip("\n")


def _read_content(content: Any, where: str) -> tuple[str, tuple[ShownImage, ...]]:
    """The text of a turn, which may be a list of parts, and the images of its parts."""
    if isinstance(content, str):
        return content, ()
    if not isinstance(content, Sequence) or isinstance(content, bytes):
        raise BadRow(f"{where}: a turn's text is {type(content).__name__}, not text or a list of parts")
    texts = []
    shown = []
    for part in content:
        text_or_image = _read_part(part, where)
        if isinstance(text_or_image, str):
            texts.append(text_or_image)
        else:
            texts.append(f"{IMAGE}\n")
            shown.append(text_or_image)
    return "".join(texts), tuple(shown)


def _read_part(part: Any, where: str) -> str | ShownImage:
    if not isinstance(part, Mapping):
        raise BadRow(f"{where}: a part of a turn is {type(part).__name__}, not an object with type")
    kind = part.get("type")
    if kind in ("image", "image_url"):
        return _read_image_part(part, where)
    if kind == "text" and isinstance(part.get("text"), str):
        cures = dict.fromkeys(IMAGE_PART_KEYS, "give it a part of type image of its own")
        refuse_keys(part, cures, "a part of type text", where)
        return part["text"]
    if isinstance(kind, str) and kind in FILM_PART_TYPES:
        raise BadRow(f"{where}: a part of a turn is of type {kind!r}: {FILM_CURE}")
    if isinstance(kind, str) and kind in ("thinking", "reasoning"):
        cure = "write it into `reasoning_content` of the turn"
        raise BadRow(f"{where}: a part of a turn is of type {kind!r}; {cure}")
    known = "text (with `text`), image, image_url"
    raise BadRow(f"{where}: a part of a turn is of type {quote(kind)}; known: {known}")


def _read_image_part(part: Mapping[str, Any], where: str) -> ShownImage:
    """The image of a part `{"type": "image", "image": ...}`.

    `path`, `url` or `base64` may stand in the place of `image`. The part may also be of the OpenAI
    API: `{"type": "image_url", "image_url": {"url": ...}}`.
    """
    cure = 'write {"type": "image", "image": "data:image/png;base64,..."}'
    refuse_keys(part, {"source": cure, "text": "give text a part of its own"}, "a part of type image", where)
    given = {}
    for key in IMAGE_PART_KEYS:
        if not is_nothing(part.get(key)):
            given[key] = _address_of_image(part[key], key)
    image = one_value(given, IMAGE_PART_KEYS, "the image of a part", where)
    index = part.get("index")
    if index is not None and (not isinstance(index, int) or isinstance(index, bool)):
        cure = "give the number of an image"
        raise BadRow(f"{where}: `index` of a part of type image is {quote(index)}; {cure}")
    if image is None and part["type"] == "image_url":
        raise BadRow(f'{where}: a part of type image_url has no `image_url`; write {{"url": ...}} into it')
    if image is not None:
        return ShownImage(image)
    return ShownImage(index=index)


def _address_of_image(value: Any, key: str) -> Any:
    if key == "image_url" and isinstance(value, Mapping):
        return value.get("url")
    if key == "base64" and isinstance(value, str):
        return f"data:image/any;base64,{value}"
    return value


def _refuse_half_characters(text: str, where: str) -> None:
    """Raises BadRow for half of a surrogate pair, which JSON can hold and no tokenizer reads."""
    if HALF_CHARACTER.search(text):
        cure = "write the file anew, in UTF-8"
        raise BadRow(f"{where}: a text has half of a character ({quote(text)}); {cure}")
