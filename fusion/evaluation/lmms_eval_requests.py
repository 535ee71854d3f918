"""Translates what a task of lmms-eval asks into turns, images, options of `generate` and rounds."""

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


class MultiRoundRequest:
    """One document of a task with several rounds.

    messages: those to answer next, or None after the last round.
    answers: those that were given, in the order of the rounds.
    """

    def __init__(self, to_messages: Callable[..., Any], document: Any) -> None:
        self.to_messages = to_messages
        self.document = document
        self.messages: Messages | None = to_messages(document)
        self.answers: list[str] = []
        self.round_info: Any = None  # what the task wants to be told in the next round

    def add_answer(self, answer: str) -> None:
        """Take an answer, and ask the task what comes next.

        When a task ends, it may put other answers in place of the model's.
        """
        self.answers.append(answer)
        following = self.to_messages(
            self.document,
            round_idx=len(self.answers),
            previous_output=list(self.answers),
            previous_round_info=self.round_info,
        )
        if not isinstance(following, tuple):  # a task that does not know of rounds
            self.messages = None
            return
        self.messages, has_ended, final_answers, self.round_info = following
        if has_ended:
            self.messages = None
            if final_answers is not None:
                self.answers = list(final_answers)


def generation_options(options: Mapping[str, Any], max_new_tokens: int) -> tuple[list[str], dict[str, Any]]:
    """The stops, and the options of `generate`, for a task's `generation_kwargs`.

    A task that gives do_sample is taken at its word; one that does not samples at a temperature
    above 0. `image_aspect_ratio` belongs to LLaVA's preprocessing and is dropped, as a fused model
    has its own. `generate` refuses options that it does not know.
    """
    given: dict[str, Any] = {}
    for name, value in options.items():
        if value is not None and name != "image_aspect_ratio":
            given[name] = value
    stops = _stops_of(given.pop("until", []))
    does_sample = given.pop("do_sample", "temperature" in given) and given.get("temperature", 1) > 0
    generation: dict[str, Any] = {"max_new_tokens": max_new_tokens}
    for name, value in given.items():
        if does_sample or name not in SAMPLING:
            generation[name] = value
    generation["do_sample"] = bool(does_sample)
    return stops, generation


def _stops_of(until: str | Sequence[str]) -> list[str]:
    stops = [until] if isinstance(until, str) else list(until)
    stops = list(filter(None, stops))
    return [] if stops == NO_STOP_NAMED else stops


def cut_at_first_stop(text: str, stops: Sequence[str]) -> str:
    """The text in front of the first stop."""
    beginnings = [text.partition(stop)[0] for stop in stops]
    return min(beginnings, key=len, default=text).strip()


def batches_of_requests(options: Sequence[Mapping[str, Any]], size: int) -> Iterator[list[int]]:
    """Numbers of requests that can be answered at once: at most `size`, all with the same options."""
    numbers_of_options: dict[str, list[int]] = {}
    for number, given in enumerate(options):
        key = json.dumps(given, sort_keys=True, default=str)
        numbers_of_options.setdefault(key, []).append(number)
    for numbers in numbers_of_options.values():
        for start in range(0, len(numbers), size):
            yield numbers[start : start + size]


def read_messages(messages: Messages) -> tuple[list[dict[str, str]], list[Tensor]]:
    """Turns whose text has an `<image>` where each image stands, and the images, each `[3, H, W]`.

    Some tasks write `<image>` into their text themselves: then the images of the turn stand there.
    Raises UserError where their numbers differ, and for media other than images.
    """
    turns = []
    images: list[Tensor] = []
    for message in messages:
        text, pictures = _read_parts(message["content"])
        turns.append({"role": message["role"], "content": text})
        images += map(pixels, pictures)
    return turns, images


def _read_parts(parts: Sequence[Mapping[str, Any]]) -> tuple[str, list[Any]]:
    """The text of a message with its `<image>`s, and the pictures as the task gives them."""
    texts = []
    texts_with_places = []
    pictures = []
    unknown = set()
    for part in parts:
        if part["type"] == "image":
            pictures.append(part["url"])
            texts_with_places.append(f"{IMAGE_TOKEN}\n")
        elif part["type"] == "text":
            texts.append(part["text"])
            texts_with_places.append(part["text"])
        else:
            unknown.add(part["type"])
    if unknown:
        media = ", ".join(sorted(unknown))
        cure = "a fused model sees images and reads text, so leave the task out"
        raise UserError(f"the task shows {media}; {cure}")
    text = "".join(texts)
    place_count = text.count(IMAGE_TOKEN)
    if place_count not in (0, len(pictures)):
        raise UserError(
            f"{len(pictures)} images belong to a text with {place_count} {IMAGE_TOKEN}: {text[:200]!r}"
        )
    return (text if place_count else "".join(texts_with_places)), pictures


def pixels(image: Image.Image | str) -> Tensor:
    """The pixels `[3, H, W]` uint8 of a picture or of a file. Raises UserError."""
    try:
        return image_tensor(image)
    except UserError as error:
        raise UserError(f"the task shows an image that cannot be used: {error}") from None
