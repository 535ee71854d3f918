"""Conversations about images: what one is, and how a message about a bad row shows what stands in
it.

How a row of a file becomes a conversation: fusion/conversations/rows.py.
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
SHOWN_CHARACTERS = 200  # of a value in a message


class BadRow(UserError):
    """A row that cannot be trained on; the message names file, row and cure."""


@dataclass(frozen=True)
class Message:
    """One turn. role: system, user or assistant. text: with one `<image>` where each of its images
    stands.

    thoughts: what the assistant thinks before it says `text`, without the marks of any chat
    template.
    learnt: whether an answer is trained on, or is only there for those that follow.
    """

    role: str
    text: str
    thoughts: str = ""
    learnt: bool = True


@dataclass(frozen=True)
class Conversation:
    """Turns and the images they speak of, `[3, H, W]` uint8, in the order of their places.

    where: file and row, for messages.

    kind, choices: of the question, where the source knows them: what it asks about, and the
    possible answers.
    """

    where: str
    messages: tuple[Message, ...]
    images: tuple[Tensor, ...] = ()
    kind: str = ""
    choices: tuple[str, ...] = ()


def scene_conversation(where: str, scene: Scene, asked: Sequence[Question]) -> Conversation:
    """Questions about a scene, the picture before the first."""
    pairs = [(Message("user", each.text), Message("assistant", each.answer)) for each in asked]
    messages = [message for pair in pairs for message in pair]
    messages[0] = Message("user", f"{IMAGE}\n{messages[0].text}")
    return Conversation(where, tuple(messages), (scene.image,), asked[0].kind, asked[0].choices)


def decoded(data: bytes, where: str, max_pixels: int | None = None) -> Tensor:
    """`[3, H, W]` uint8. Raises BadRow, also for numbers of no known range.

    max_pixels: of the largest image, where the source has an option that says so.
    """
    try:
        image = decode_image(data, 3, PixelOptions(max_pixels=max_pixels or MAX_PIXELS))
    except UnreadableImage as error:
        cure = "mend or drop it"
        if error.reason == "too_large" and max_pixels:
            cure = "make it smaller, or add max_pixels=NUMBER to the options of the source"
        raise BadRow(f"{where} cannot be decoded ({error.reason}); {cure}") from None
    if image.dtype != torch.uint8:
        raise BadRow(
            f"{where} holds numbers whose black and white are not known; save it as a picture of 8 or 16 bits, such as PNG"
        )
    return image


def shortened(text: str) -> str:
    """`text` on one line of printable characters, cut after 200 of them.

    With it a message never prints the whole of an image in base64.
    """
    line = repr(text[: SHOWN_CHARACTERS + 1])[1:-1]
    if len(text) <= SHOWN_CHARACTERS and len(line) <= 2 * SHOWN_CHARACTERS:
        return line
    return f"{line[:SHOWN_CHARACTERS]}… ({len(text):,} characters)"


def quoted(value: Any) -> str:
    """Any value of a row as Python writes it, cut like `shortened`, however large or deeply nested
    it is."""
    if isinstance(value, str):
        return f"'{shortened(value)}'"
    if isinstance(value, bytes):
        return f"{len(value):,} bytes"
    return shortened(reprlib.repr(value))
