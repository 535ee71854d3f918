"""What a conversation about images is: its messages and its images.

How a row of a file becomes a conversation: fusion/conversations/rows.py. This module also decodes
images of rows and shortens values for the messages about bad rows.
"""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vision_core.errors import UserError
from vision_core.images.decode import MAX_PIXELS, UnreadableImage, decode_image
from vision_core.images.pixel_options import PixelOptions
from vision_core.scenes.draw import Scene
from vision_core.scenes.language import Question

IMAGE = "<image>"
MOST_OF_A_VALUE = 200  # characters of a value in a message


class BadRow(UserError):
    """A row that cannot be trained on; the message names file, row and cure."""


@dataclass(frozen=True)
class Message:
    """One turn.

    role: system, user or assistant.
    text: the words, with one `<image>` where each image of the turn stands.
    thoughts: what the assistant thinks before it says `text`, without the marks of any chat
        template.
    learnt: whether an answer is trained on; otherwise it only gives context to those that follow.
    """

    role: str
    text: str
    thoughts: str = ""
    learnt: bool = True


@dataclass(frozen=True)
class Conversation:
    """Messages and the images that they speak of.

    where: file and row, for messages about faults.
    images: each `[3, H, W]` uint8, in the order of their places in the text.
    kind: what the question asks about, where the source knows it.
    choices: the possible answers, where the source knows them.
    """

    where: str
    messages: tuple[Message, ...]
    images: tuple[Tensor, ...] = ()
    kind: str = ""
    choices: tuple[str, ...] = ()


def scene_conversation(where: str, scene: Scene, asked: Sequence[Question]) -> Conversation:
    """Questions about a scene and their answers, with the picture in front of the first question."""
    messages = []
    for question in asked:
        messages += [Message("user", question.text), Message("assistant", question.answer)]
    messages[0] = Message("user", f"{IMAGE}\n{messages[0].text}")
    return Conversation(where, tuple(messages), (scene.image,), asked[0].kind, asked[0].choices)


def decode_row_image(data: bytes, where: str, max_pixels: int | None = None) -> Tensor:
    """The image `[3, H, W]` uint8 in a file's bytes.

    max_pixels: the size of the largest image, where the source has an option that says so.
    Raises BadRow, also for numbers whose range is not known.
    """
    try:
        image = decode_image(data, 3, PixelOptions(max_pixels=max_pixels or MAX_PIXELS))
    except UnreadableImage as error:
        cure = "mend or drop it"
        if error.reason == "too_large" and max_pixels:
            cure = "make it smaller, or add max_pixels=NUMBER to the options of the source"
        raise BadRow(f"{where} cannot be decoded ({error.reason}); {cure}") from None
    if image.dtype != torch.uint8:
        cure = "save it as a picture of 8 or 16 bits, such as PNG"
        raise BadRow(f"{where} holds numbers whose black and white are not known; {cure}")
    return image


def one_line(text: str) -> str:
    """`text` on one line of printable characters, cut after 200 of them.

    So a message never prints a large image in base64.
    """
    line = repr(text[: MOST_OF_A_VALUE + 1])[1:-1]
    if len(text) <= MOST_OF_A_VALUE and len(line) <= 2 * MOST_OF_A_VALUE:
        return line
    return f"{line[:MOST_OF_A_VALUE]}… ({len(text):,} characters)"


def quote(value: Any) -> str:
    """Any value of a row as Python writes it, cut like `one_line`, however large or deep it is."""
    if isinstance(value, str):
        return f"'{one_line(value)}'"
    if isinstance(value, bytes):
        return f"{len(value):,} bytes"
    return one_line(reprlib.repr(value))
