"""Conversations about images: what one is, and how a row of a file becomes one, whichever of their formats it is in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from vision_core.errors import UserError
from vision_core.images.decode import UnreadableImage, decode_image
from vision_core.images.scene_language import Question
from vision_core.images.scenes import Scene

IMAGE = "<image>"
ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


class BadRow(UserError):
    """A row that cannot be trained on; the message names file, row and cure."""


@dataclass(frozen=True)
class Message:
    """One turn. role: system, user or assistant. text: with one `<image>` where each of its images stands.

    thoughts: what the assistant thinks before it says `text`, without the marks of any chat template. learnt: whether an answer is trained on, or is only
    there for those that follow.
    """

    role: str
    text: str
    thoughts: str = ""
    learnt: bool = True


@dataclass(frozen=True)
class Conversation:
    """Turns and the images they speak of, `[3, H, W]` uint8, in the order of their places. where: file and row, for messages.

    kind, choices: of the question, where the source knows them: what it asks about, and the possible answers.
    """

    where: str
    messages: tuple[Message, ...]
    images: tuple[Tensor, ...] = ()
    kind: str = ""
    choices: tuple[str, ...] = ()


def read_conversation(row: Mapping[str, Any], where: str, image: Callable[[Mapping[str, Any], int, str], Tensor]) -> Conversation:
    """A row, checked, with its images, which `image(row, number, where)` reads. Raises BadRow."""
    count = len(images_of(row))
    messages = with_places(read_messages(row, where), count, where)
    images = tuple(image(row, number, where) for number in range(count))
    return Conversation(where, messages, images, str(row.get("kind") or ""))


def read_messages(row: Mapping[str, Any], where: str) -> tuple[Message, ...]:
    """The turns of a row in either spelling, checked. Raises BadRow."""
    turns = row.get("conversations") if row.get("conversations") is not None else row.get("messages")
    if not isinstance(turns, Sequence) or isinstance(turns, str) or not turns:
        raise BadRow(f"{where}: there are no turns; a row has `conversations` or `messages`, a list of them")
    messages = tuple(_read_turn(turn, where) for turn in turns)
    spoken = [message.role for message in messages if message.role != "system"]
    if any(message.role == "system" for message in messages[1:]):
        raise BadRow(f"{where}: a system turn stands behind others; it goes first")
    if spoken[::2] != ["user"] * len(spoken[::2]) or spoken[1::2] != ["assistant"] * len(spoken[1::2]) or len(spoken) % 2:
        raise BadRow(f"{where}: turns are {', '.join(spoken) or 'none'}; user and assistant take turns, and the assistant has the last")
    empty = next((number for number, message in enumerate(messages, 1) if message.role == "assistant" and not message.text.strip()), None)
    if empty:
        raise BadRow(f"{where}: the answer in turn {empty} is empty; there is nothing to learn from it")
    return messages


def _read_turn(turn: Any, where: str) -> Message:
    if not isinstance(turn, Mapping):
        raise BadRow(f"{where}: a turn is {type(turn).__name__}, not an object with role and text")
    role = turn.get("from", turn.get("role"))
    content = turn.get("value", turn.get("content"))
    if role not in ROLES:
        raise BadRow(f"{where}: a turn is spoken by {role!r}; known: {', '.join(ROLES)}")
    if isinstance(content, Sequence) and not isinstance(content, str):
        content = "".join(_read_part(part, where) for part in content)
    if not isinstance(content, str):
        raise BadRow(f"{where}: a turn's text is {type(content).__name__}, not text or a list of parts")
    if ROLES[role] != "user" and IMAGE in content:
        raise BadRow(f"{where}: {IMAGE} stands in a turn of the {ROLES[role]}; images are shown by the user")
    return Message(ROLES[role], content)


def _read_part(part: Any, where: str) -> str:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "image":
        return f"{IMAGE}\n"
    if kind == "text" and isinstance(part.get("text"), str):
        return part["text"]
    raise BadRow(f"{where}: a part of a turn is of type {kind!r}; known: text, image")


def images_of(row: Mapping[str, Any]) -> Sequence[Any]:
    """The images of a row as they stand there, in `images`, or in `image` where that is missing or null."""
    several = row.get("images") if row.get("images") is not None else row.get("image")
    if several is None:
        return ()
    return several if isinstance(several, Sequence | np.ndarray) and not isinstance(several, str | bytes) else (several,)


def with_places(messages: tuple[Message, ...], count: int, where: str) -> tuple[Message, ...]:
    """The turns, with `<image>` in front of the first question where images are given and no place is. Raises BadRow for another number of places."""
    places = sum(message.text.count(IMAGE) for message in messages)
    if places == count:
        return messages
    if places == 0:
        first = next(number for number, message in enumerate(messages) if message.role == "user")
        shown = Message("user", f"{IMAGE}\n" * count + messages[first].text)
        return (*messages[:first], shown, *messages[first + 1 :])
    raise BadRow(f"{where}: the text has {places} {IMAGE} and the row has {count} images; give one {IMAGE} for each image, or none")


def scene_conversation(where: str, scene: Scene, asked: Sequence[Question]) -> Conversation:
    """Questions about a scene, the picture before the first."""
    messages = [Message(role, text) for each in asked for role, text in (("user", each.text), ("assistant", each.answer))]
    messages[0] = Message("user", f"{IMAGE}\n{messages[0].text}")
    return Conversation(where, tuple(messages), (scene.image,), asked[0].kind, asked[0].choices)


def embedded_image(row: Mapping[str, Any], number: int, where: str) -> Tensor:
    """Image `number` of a row of a table, which holds its bytes. Raises BadRow."""
    image = images_of(row)[number]
    data = image.get("bytes") if isinstance(image, Mapping) else image
    if not isinstance(data, bytes):
        raise BadRow(f"{where}: image {number + 1} is not in the table (no bytes); embed the images, or use llava:FILE?images=FOLDER")
    return decoded(data, f"{where}: image {number + 1}")


def decoded(data: bytes, where: str) -> Tensor:
    """`[3, H, W]` uint8. Raises BadRow."""
    try:
        return decode_image(data, 3)
    except UnreadableImage as error:
        raise BadRow(f"{where} cannot be decoded ({error.reason}); mend or drop it") from None
