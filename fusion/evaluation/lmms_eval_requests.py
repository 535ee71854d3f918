"""What a task of lmms-eval asks, in the terms of this project: turns, images, options of
`generate`, rounds."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from PIL import Image
from torch import Tensor

from fusion.processing_fusion import IMAGE_TOKEN
from vision_core.errors import UserError
from vision_core.images.any_image import image_tensor

Messages = Sequence[Mapping[str, Any]]

# lmms-eval writes this into the options of every task that names no stop. It would cut a model's
# reasoning behind the first paragraph.
NO_STOP_NAMED = ["\n\n"]
SAMPLING = ("temperature", "top_p", "top_k")


class Talk:
    """One document of a task with several rounds: the messages to answer, or None after the last
    round, and the answers."""

    def __init__(self, to_messages: Callable[..., Any], document: Any) -> None:
        self.to_messages, self.document = to_messages, document
        self.messages: Messages | None = to_messages(document)
        self.answers: list[str] = []
        self.notes: Any = None  # what the task wants to be told in the next round

    def go_on(self, answer: str) -> None:
        """Take an answer, and ask the task what comes next; the task may put other answers in place
        of the model's when it ends."""
        self.answers.append(answer)
        told = {
            "round_idx": len(self.answers),
            "previous_output": list(self.answers),
            "previous_round_info": self.notes,
        }
        following = self.to_messages(self.document, **told)
        if not isinstance(following, tuple):  # a task that knows of no rounds
            self.messages = None
            return
        self.messages, ended, answers, self.notes = following
        if ended:
            self.messages, self.answers = None, self.answers if answers is None else list(answers)


def generation_options(options: Mapping[str, Any], max_new_tokens: int) -> tuple[list[str], dict[str, Any]]:
    """The stops, and the options of `generate`, for a task's `generation_kwargs`; `generate`
    refuses those that it does not know.

    A task that says do_sample is taken at its word, one that does not samples at a temperature
    above 0. `image_aspect_ratio` is LLaVA's preprocessing, of which a fused model has its own.
    """
    asked = {
        name: value for name, value in options.items() if value is not None and name != "image_aspect_ratio"
    }
    until = asked.pop("until", [])
    until = [stop for stop in ([until] if isinstance(until, str) else until) if stop]
    sampled = asked.pop("do_sample", "temperature" in asked) and asked.get("temperature", 1) > 0
    if not sampled:
        asked = {name: value for name, value in asked.items() if name not in SAMPLING}
    return [] if until == NO_STOP_NAMED else until, {"max_new_tokens": max_new_tokens} | asked | {
        "do_sample": bool(sampled)
    }


def up_to_a_stop(text: str, until: Sequence[str]) -> str:
    """What stands in front of the first stop."""
    return min((text.partition(stop)[0] for stop in until), key=len, default=text).strip()


def batches(options: Sequence[Mapping[str, Any]], size: int) -> Iterator[list[int]]:
    """Numbers of requests that can be answered at once: at most `size` of them, with the same
    options."""
    alike: dict[str, list[int]] = {}
    for number, each in enumerate(options):
        alike.setdefault(json.dumps(each, sort_keys=True, default=str), []).append(number)
    for numbers in alike.values():
        yield from (numbers[start : start + size] for start in range(0, len(numbers), size))


def read_messages(messages: Messages) -> tuple[list[dict[str, str]], list[Tensor]]:
    """Turns with an `<image>` in their text where each image stands, and the images `[3, H, W]`.

    Some tasks write `<image>` into their text themselves: then the images of the turn stand there.
    Raises UserError where their numbers differ, and for media other than images.
    """
    turns, images = [], []
    for message in messages:
        parts = message["content"]
        unknown = {part["type"] for part in parts} - {"text", "image"}
        if unknown:
            raise UserError(
                f"the task shows {', '.join(sorted(unknown))}; a fused model sees images and reads text, so leave the task out"
            )
        shown = [part["url"] for part in parts if part["type"] == "image"]
        written = "".join(part["text"] for part in parts if part["type"] == "text")
        if written.count(IMAGE_TOKEN) not in (0, len(shown)):
            raise UserError(
                f"{len(shown)} images belong to a text with {written.count(IMAGE_TOKEN)} {IMAGE_TOKEN}: {written[:200]!r}"
            )
        if IMAGE_TOKEN not in written:
            written = "".join(
                part["text"] if part["type"] == "text" else f"{IMAGE_TOKEN}\n" for part in parts
            )
        turns.append({"role": message["role"], "content": written})
        images += map(pixels, shown)
    return turns, images


def pixels(image: Image.Image | str) -> Tensor:
    """`[3, H, W]` uint8 of a picture or of the file of one. Raises UserError."""
    try:
        return image_tensor(image)
    except UserError as error:
        raise UserError(f"the task shows an image that cannot be used: {error}") from None
