"""What the keys of a row mean, whichever format it is in: its turns, its images, its system prompt.

    conversations   turns of `from`, `value`: LLaVA, Cambrian, ShareGPT, LLaMA-Factory
    messages        turns of `role`, `content`: chat templates, the OpenAI API, ms-swift
    texts           pairs of `user`, `assistant`: the_cauldron, FineVision
    any columns     named by the source's options question=, answer=, thoughts=, caption=, image=

A key is used; or it says something that cannot be trained here, and the row is refused with the
key's name; or no format known to us gives it a meaning, and it is ignored (check_conversations.py
lists those keys). A key that says nothing (null, empty) is as good as absent: tables have every
column in every row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fusion.conversations.conversation import IMAGE, BadRow, Conversation, Message, quoted
from fusion.conversations.images import ImageReader
from fusion.conversations.turns import (
    FILM_CURE,
    TOOLS_CURE,
    ShownImage,
    Turn,
    is_nothing,
    one_system,
    one_value,
    read_pair,
    read_turn,
    refuse_keys,
    unread_turn_keys,
)

CAPTION_INSTRUCTION = "Describe the picture in one sentence."  # what evaluate_vlm.py asks for captions too
TURNS_KEYS = ("conversations", "messages", "texts")
READ_KEYS = ("kind", "weight", "label", "kto_tag")
IMAGES_KEYS = ("images", "image")
SYSTEM_KEYS = ("system", "system_prompt")
PREFERENCE_CURE = (
    "one answer is learnt, not which of two is better; keep the chosen one, as the assistant's turn"
)
TOKENS_CURE = "rows of tokens are made for one tokenizer; give the text"
PREFERENCE_KEYS = ("chosen", "rejected", "rejected_response", "rejected_messages", "rejected_images")
REFUSED_KEYS = {
    **dict.fromkeys(("video", "videos", "video_path", "video_paths"), FILM_CURE),
    **dict.fromkeys(("audio", "audios", "audio_path", "audio_paths"), FILM_CURE),
    **dict.fromkeys(("tools", "functions", "tool_calls", "function_call"), TOOLS_CURE),
    **dict.fromkeys(PREFERENCE_KEYS, PREFERENCE_CURE),
    **dict.fromkeys(("input_ids", "loss_mask"), TOKENS_CURE),
    "objects": "write names and coordinates into the text where <ref-object> and <bbox> stand, and take `objects` out",
    "history": "write earlier questions and answers as turns of `messages`",
}
CHOSEN_BY_COLUMNS = {
    *PREFERENCE_KEYS,
    "objects",
}  # no more than metadata where the source says which columns are meant
# other names that people give to the column of an image
OTHER_IMAGE_KEYS = ("image_path", "image_paths", "image_url", "image_urls", "image_file", "img", "img_path")


@dataclass(frozen=True)
class Columns:
    """Columns that stand in for turns: a question, its answer and the answer's thoughts, or a
    caption.

    image: the column of the image or images, whatever the turns are read from.
    """

    question: str | None = None
    answer: str | None = None
    thoughts: str | None = None
    caption: str | None = None
    image: str | None = None

    def named(self) -> list[str]:
        """Those that a source names."""
        columns = (self.question, self.answer, self.thoughts, self.caption, self.image)
        return [name for name in columns if name is not None]

    def have_turns(self) -> bool:
        """Whether a question or a caption is named, so that turns of the row are not read."""
        return self.question is not None or self.caption is not None


@dataclass(frozen=True)
class Row:
    """A row that has been read and checked.

    images: as they stand in the row, in the order of their places in the text.
    """

    where: str
    messages: tuple[Message, ...]
    images: tuple[Any, ...]
    kind: str = ""

    def conversation(self, reader: ImageReader) -> Conversation:
        """The same with its images decoded. Raises BadRow."""
        images = tuple(
            reader.read(image, f"image {number}", self.where) for number, image in enumerate(self.images, 1)
        )
        return Conversation(self.where, self.messages, images, self.kind)


def read_row(row: Any, where: str, columns: Columns = Columns()) -> Row:  # noqa: B008 (it is frozen)
    """A row of a file, whose images are not opened. Raises BadRow, which names row, key and
    cure."""
    if not isinstance(row, Mapping):
        raise BadRow(f"{where}: this is {type(row).__name__}, not an object; mend the row, or leave it out")
    _refuse_what_is_not_trained(row, columns, where)
    turns = _turns_of_columns(row, columns, where) if columns.have_turns() else _turns(row, where)
    messages = _with_system(tuple(turn.message for turn in turns), row, where)
    _check_turns(messages, where)
    shown = [image for turn in turns for image in turn.shown]
    images = _images_in_order(_images_of(row, columns, where), shown, where)
    if columns.caption is not None and not images:
        raise BadRow(
            f"{where}: there is a caption and no image; name its column by image=, or leave the row out"
        )
    kind = row.get("kind")
    return Row(
        where, _with_places(messages, len(images), where), images, kind if isinstance(kind, str) else ""
    )


def unread_keys(row: Any, columns: Columns) -> set[str]:
    """The keys that nothing reads and that say something; those of turns as `turns: KEY`."""
    if not isinstance(row, Mapping):
        return set()
    turns_keys = () if columns.have_turns() else TURNS_KEYS
    images_keys = IMAGES_KEYS if columns.image is None else ()
    read = {*turns_keys, *images_keys, *SYSTEM_KEYS, *refused_keys(columns), *columns.named(), *READ_KEYS}
    unread = {str(key) for key, value in row.items() if key not in read and not is_nothing(value)}
    for key in turns_keys:
        turns = row.get(key)
        for turn in turns if isinstance(turns, list) else ():
            unread |= {f"turns: {each}" for each in unread_turn_keys(turn)}
    return unread


def refused_keys(columns: Columns) -> dict[str, str]:
    """The keys for which a row is refused, with their cures."""
    allowed = {*columns.named(), *(CHOSEN_BY_COLUMNS if columns.have_turns() else ())}
    return {key: cure for key, cure in REFUSED_KEYS.items() if key not in allowed}


def _refuse_what_is_not_trained(row: Mapping[str, Any], columns: Columns, where: str) -> None:
    refuse_keys(row, refused_keys(columns), "the row", where)
    weight = row.get("weight")
    if weight is not None and weight != 1:
        cure = "rows count alike: mix sources by ?weight=, leave rows of weight 0 out, and take `weight` out"
        raise BadRow(f"{where}: the row has `weight` {quoted(weight)}; {cure}")
    for key in ("label", "kto_tag"):  # KTO's, of ms-swift and TRL, and of LLaMA-Factory
        if row.get(key) is False:
            cure = f"leave the row out, or take `{key}` out"
            raise BadRow(
                f"{where}: the row has `{key}` false, so its answer is one that nobody wants; {cure}"
            )


def _turns(row: Mapping[str, Any], where: str) -> list[Turn]:
    """The turns of a row in any of the spellings."""
    given = {key: row[key] for key in TURNS_KEYS if not is_nothing(row.get(key))}
    if len(given) > 1:
        places = " and in ".join(f"`{key}`" for key in given)
        raise BadRow(f"{where}: the row has turns in {places}; keep those that are meant")
    key, turns = next(iter(given.items()), ("", None))
    if not isinstance(turns, Sequence) or isinstance(turns, str | bytes):
        raise BadRow(
            f"{where}: there are no turns; a row has `conversations`, `messages` or `texts`, a list of them, "
            "or columns that the source names by question= and answer=, or by caption="
        )
    if key == "texts":
        return [turn for pair in turns for turn in read_pair(pair, where)]
    return [read_turn(turn, where) for turn in turns]


def _turns_of_columns(row: Mapping[str, Any], columns: Columns, where: str) -> list[Turn]:
    """A question and its answer, or the instruction and a caption."""
    if columns.caption is not None:
        question, answer = CAPTION_INSTRUCTION, _text_of(row, columns.caption, where)
    else:
        assert columns.question is not None and columns.answer is not None
        question, answer = (_text_of(row, columns.question, where), _text_of(row, columns.answer, where))
        if columns.question == "instruction" and not is_nothing(row.get("input")):
            cure = "write both into one column, and name that"
            raise BadRow(f"{where}: the row has `input` beside `instruction`, as Alpaca has it; {cure}")
    thoughts = row.get(columns.thoughts) if columns.thoughts is not None else None
    answered = {"role": "assistant", "content": answer, "thoughts": thoughts}
    return [read_turn({"role": "user", "content": question}, where), read_turn(answered, where)]


def _text_of(row: Mapping[str, Any], column: str, where: str) -> str:
    if column not in row:
        raise BadRow(
            f"{where}: there is no column {quoted(column)}; the row has {quoted([str(key) for key in row])}"
        )
    if row[column] is None:
        raise BadRow(f"{where}: {quoted(column)} is empty; leave the row out, or fill it in")
    if not isinstance(row[column], str):
        kind = type(row[column]).__name__
        raise BadRow(f"{where}: {quoted(column)} is {kind}, not text; write one row for each text")
    return row[column]


def _with_system(messages: tuple[Message, ...], row: Mapping[str, Any], where: str) -> tuple[Message, ...]:
    """The turns, with the row's system prompt in front where it has one."""
    text = one_system(one_value(row, SYSTEM_KEYS, "the system prompt", where), where)
    first = next((message for message in messages if message.role == "system"), None)
    if not text or (first is not None and first.text == text):
        return messages
    if first is not None:
        both = f"`system` {quoted(text)} and a system turn {quoted(first.text)}"
        raise BadRow(f"{where}: the row has {both}; keep the one that is meant")
    return (Message("system", text), *messages)


def _check_turns(messages: tuple[Message, ...], where: str) -> None:
    spoken = [message.role for message in messages if message.role != "system"]
    if any(message.role == "system" for message in messages[1:]):
        raise BadRow(f"{where}: a system turn stands behind others; it goes first")
    if not spoken or spoken != ["user", "assistant"] * (len(spoken) // 2):
        said = quoted(", ".join(spoken) or "none")
        raise BadRow(
            f"{where}: turns are {said[1:-1]}; user and assistant take turns, and the assistant has the last: take out what has no answer"
        )
    answers = [(number, message) for number, message in enumerate(messages, 1) if message.role == "assistant"]
    for number, message in answers:
        if not message.text.strip():
            raise BadRow(
                f"{where}: the answer in turn {number} is empty; there is nothing to learn from it, so leave the row out"
            )
    if not any(message.learnt for _, message in answers):
        reason = "no answer is learnt (all have weight 0, or loss or train false)"
        raise BadRow(f"{where}: {reason}; leave the row out, or let one be learnt")


def _images_of(row: Mapping[str, Any], columns: Columns, where: str) -> tuple[Any, ...]:
    """The images of a row as they stand there, in `images` or `image`, or in the column that the
    source names."""
    if columns.image is not None:
        if columns.image not in row:
            hint = "image= names a column, and images= the folder"
            raise BadRow(f"{where}: there is no column {quoted(columns.image)}; {hint}")
        return _listed(row[columns.image])
    given = {key: _listed(row[key]) for key in IMAGES_KEYS if not is_nothing(row.get(key))}
    images = one_value(given, IMAGES_KEYS, "the row's image", where) or ()
    other = next((key for key in OTHER_IMAGE_KEYS if not is_nothing(row.get(key))), None)
    if not images and other is not None:
        cure = f"say by image={other} that it is the image, or take it out"
        raise BadRow(f"{where}: the row has `{other}` and no `image`; {cure}")
    return images


def _listed(images: Any) -> tuple[Any, ...]:
    if is_nothing(images):
        return ()
    is_list = isinstance(images, Sequence) and not isinstance(images, str | bytes)
    return tuple(images) if is_list else (images,)


def _images_in_order(of_row: tuple[Any, ...], shown: Sequence[ShownImage], where: str) -> tuple[Any, ...]:
    """The images in the order of their places: those of the turns' parts, or those of the row.

    Parts may name images of the row by their numbers.
    """
    inline = tuple(each.image for each in shown if each.image is not None)
    numbers = [each.index for each in shown if each.index is not None]
    if inline and len(inline) != len(shown):
        raise BadRow(
            f"{where}: some parts of type image hold their image and others do not; give all of them theirs"
        )
    if inline and of_row and of_row != inline:
        raise BadRow(
            f"{where}: images stand in the turns' parts and in the row's `images`; keep those that are meant"
        )
    if inline or not numbers:
        return inline or of_row
    if len(numbers) != len(shown) or set(numbers) != set(range(len(of_row))):
        named = f"the parts of type image name images {quoted(numbers)} by `index`"
        raise BadRow(f"{where}: {named}, and the row has {len(of_row)}; name each of them")
    return tuple(of_row[number] for number in numbers)


def _with_places(messages: tuple[Message, ...], count: int, where: str) -> tuple[Message, ...]:
    """The turns, with `<image>` in front of the first question where images are given and no place
    is."""
    places = sum(message.text.count(IMAGE) for message in messages)
    if places == count:
        return messages
    if places == 0:
        first = next(number for number, message in enumerate(messages) if message.role == "user")
        shown = Message("user", f"{IMAGE}\n" * count + messages[first].text)
        return (*messages[:first], shown, *messages[first + 1 :])
    cure = f"give one {IMAGE} for each image, or none"
    raise BadRow(f"{where}: the text has {places} {IMAGE} and the row has {count} images; {cure}")
