"""Reads a row of a file or table: what its keys mean, whichever format it is in.

    conversations   turns of `from`, `value`: LLaVA, Cambrian, ShareGPT, LLaMA-Factory
    messages        turns of `role`, `content`: chat templates, the OpenAI API, ms-swift
    texts           pairs of `user`, `assistant`: the_cauldron, FineVision
    any columns     named by the source's options question=, answer=, thoughts=, caption=, image=

A key is used. Or it says something that cannot be trained here, and the row is refused with the
key's name. Or it has no meaning in any known format, and it is ignored (check_conversations.py lists
those keys). A key that says nothing (null, empty) counts as absent, because tables have every column
in every row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fusion.conversations.conversation import IMAGE, BadRow, Conversation, Message, quote
from fusion.conversations.images import ImageReader
from fusion.conversations.turns import (
    FILM_CURE,
    TOOLS_CURE,
    ShownImage,
    Turn,
    is_nothing,
    one_value,
    read_pair,
    read_system_prompt,
    read_turn,
    refuse_keys,
    unread_turn_keys,
)

CAPTION_INSTRUCTION = "Describe the picture in one sentence."  # the benchmark of captions asks it too
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
    "objects": "write names and coordinates into the text where <ref-object> and <bbox> stand, "
    "and take `objects` out",
    "history": "write earlier questions and answers as turns of `messages`",
}
# only metadata where the source says which columns are meant
IGNORED_BESIDE_COLUMNS = {*PREFERENCE_KEYS, "objects"}
# other names that people give to the column of an image
OTHER_IMAGE_KEYS = ("image_path", "image_paths", "image_url", "image_urls", "image_file", "img", "img_path")


@dataclass(frozen=True)
class Columns:
    """The columns that a source names by its options.

    question, answer, thoughts: they stand in for turns.
    caption: it stands in for turns too, as the answer to a request for a caption.
    image: the column of the image or images, whatever the turns are read from.
    """

    question: str | None = None
    answer: str | None = None
    thoughts: str | None = None
    caption: str | None = None
    image: str | None = None

    def named(self) -> list[str]:
        """The names of all columns that the source names."""
        columns = (self.question, self.answer, self.thoughts, self.caption, self.image)
        return [name for name in columns if name is not None]

    def have_turns(self) -> bool:
        """Whether a question or a caption is named, so that turns of the row are not read."""
        return self.question is not None or self.caption is not None


@dataclass(frozen=True)
class Row:
    """A row that has been read and checked.

    images: as the row has them, in the order of their places in the text.
    kind: what the question asks about, where the row says it.
    """

    where: str
    messages: tuple[Message, ...]
    images: tuple[Any, ...]
    kind: str = ""

    def conversation(self, reader: ImageReader) -> Conversation:
        """The conversation of this row, with its images decoded. Raises BadRow."""
        images = []
        for number, image in enumerate(self.images, 1):
            images.append(reader.read(image, f"image {number}", self.where))
        return Conversation(self.where, self.messages, tuple(images), self.kind)


def read_row(row: Any, where: str, columns: Columns = Columns()) -> Row:  # noqa: B008 (it is frozen)
    """A row of a file, checked; its images are not opened.

    Raises BadRow, which names row, key and cure.
    """
    if not isinstance(row, Mapping):
        raise BadRow(f"{where}: this is {type(row).__name__}, not an object; mend the row, or leave it out")
    _refuse_what_is_not_trained(row, columns, where)
    if columns.have_turns():
        turns = _turns_from_columns(row, columns, where)
    else:
        turns = _read_turns(row, where)
    messages = _add_system_prompt(tuple(turn.message for turn in turns), row, where)
    _check_order(messages, where)
    _check_answers(messages, where)
    shown: list[ShownImage] = []
    for turn in turns:
        shown += turn.shown
    images = _images_in_order(_find_images(row, columns, where), shown, where)
    if columns.caption is not None and not images:
        cure = "name its column by image=, or leave the row out"
        raise BadRow(f"{where}: there is a caption and no image; {cure}")
    messages = _add_image_places(messages, len(images), where)
    kind = row.get("kind")
    return Row(where, messages, images, kind if isinstance(kind, str) else "")


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
            unread.update(map("turns: {}".format, unread_turn_keys(turn)))
    return unread


def refused_keys(columns: Columns) -> dict[str, str]:
    """The keys for which a row is refused, with their cures."""
    allowed = set(columns.named())
    if columns.have_turns():
        allowed |= IGNORED_BESIDE_COLUMNS
    return {key: cure for key, cure in REFUSED_KEYS.items() if key not in allowed}


def _refuse_what_is_not_trained(row: Mapping[str, Any], columns: Columns, where: str) -> None:
    refuse_keys(row, refused_keys(columns), "the row", where)
    weight = row.get("weight")
    if weight is not None and weight != 1:
        cure = "rows count alike: mix sources by ?weight=, leave rows of weight 0 out, and take `weight` out"
        raise BadRow(f"{where}: the row has `weight` {quote(weight)}; {cure}")
    for key in ("label", "kto_tag"):  # KTO's, of ms-swift and TRL, and of LLaMA-Factory
        if row.get(key) is False:
            fault = f"the row has `{key}` false, so its answer is one that nobody wants"
            raise BadRow(f"{where}: {fault}; leave the row out, or take `{key}` out")


def _read_turns(row: Mapping[str, Any], where: str) -> list[Turn]:
    """The turns of a row in any of the spellings."""
    keys = [key for key in TURNS_KEYS if not is_nothing(row.get(key))]
    if len(keys) > 1:
        places = " and in ".join(map("`{}`".format, keys))
        raise BadRow(f"{where}: the row has turns in {places}; keep those that are meant")
    turns = row[keys[0]] if keys else None
    if not isinstance(turns, Sequence) or isinstance(turns, str | bytes):
        raise BadRow(
            f"{where}: there are no turns; a row has `conversations`, `messages` or `texts`, a list of them, "
            "or columns that the source names by question= and answer=, or by caption="
        )
    if keys == ["texts"]:
        read: list[Turn] = []
        for pair in turns:
            read += read_pair(pair, where)
        return read
    return [read_turn(turn, where) for turn in turns]


def _turns_from_columns(row: Mapping[str, Any], columns: Columns, where: str) -> list[Turn]:
    """A question and its answer, or the instruction and a caption."""
    if columns.caption is not None:
        question = CAPTION_INSTRUCTION
        answer = _text_of_column(row, columns.caption, where)
    else:
        assert columns.question is not None and columns.answer is not None
        question = _text_of_column(row, columns.question, where)
        answer = _text_of_column(row, columns.answer, where)
        if columns.question == "instruction" and not is_nothing(row.get("input")):
            cure = "write both into one column, and name that"
            raise BadRow(f"{where}: the row has `input` beside `instruction`, as Alpaca has it; {cure}")
    thoughts = row.get(columns.thoughts) if columns.thoughts is not None else None
    answered = {"role": "assistant", "content": answer, "thoughts": thoughts}
    return [read_turn({"role": "user", "content": question}, where), read_turn(answered, where)]


def _text_of_column(row: Mapping[str, Any], column: str, where: str) -> str:
    if column not in row:
        present = quote(list(map(str, row)))
        raise BadRow(f"{where}: there is no column {quote(column)}; the row has {present}")
    text = row[column]
    if text is None:
        raise BadRow(f"{where}: {quote(column)} is empty; leave the row out, or fill it in")
    if not isinstance(text, str):
        kind = type(text).__name__
        raise BadRow(f"{where}: {quote(column)} is {kind}, not text; write one row for each text")
    return text


def _add_system_prompt(
    messages: tuple[Message, ...], row: Mapping[str, Any], where: str
) -> tuple[Message, ...]:
    """The messages, with the row's system prompt in front where it has one."""
    text = read_system_prompt(one_value(row, SYSTEM_KEYS, "the system prompt", where), where)
    system_turn = next((message for message in messages if message.role == "system"), None)
    if not text:
        return messages
    if system_turn is None:
        return (Message("system", text), *messages)
    if system_turn.text != text:
        both = f"`system` {quote(text)} and a system turn {quote(system_turn.text)}"
        raise BadRow(f"{where}: the row has {both}; keep the one that is meant")
    return messages


def _check_order(messages: tuple[Message, ...], where: str) -> None:
    """Raises BadRow unless user and assistant take turns behind at most one system turn."""
    roles = [message.role for message in messages]
    if "system" in roles[1:]:
        raise BadRow(f"{where}: a system turn stands behind others; it goes first")
    spoken = roles[1:] if roles[:1] == ["system"] else roles
    if not spoken or spoken != ["user", "assistant"] * (len(spoken) // 2):
        listed = quote(", ".join(spoken) or "none")[1:-1]
        rule = "user and assistant take turns, and the assistant has the last"
        raise BadRow(f"{where}: turns are {listed}; {rule}: take out what has no answer")


def _check_answers(messages: tuple[Message, ...], where: str) -> None:
    """Raises BadRow where an answer is empty, or none is learnt."""
    is_any_learnt = False
    for number, message in enumerate(messages, 1):
        if message.role != "assistant":
            continue
        if not message.text.strip():
            cure = "there is nothing to learn from it, so leave the row out"
            raise BadRow(f"{where}: the answer in turn {number} is empty; {cure}")
        is_any_learnt = is_any_learnt or message.learnt
    if not is_any_learnt:
        reason = "no answer is learnt (all have weight 0, or loss or train false)"
        raise BadRow(f"{where}: {reason}; leave the row out, or let one be learnt")


def _find_images(row: Mapping[str, Any], columns: Columns, where: str) -> tuple[Any, ...]:
    """The images as the row has them, in `images` or `image`, or in the column of the source."""
    if columns.image is not None:
        if columns.image not in row:
            hint = "image= names a column, and images= the folder"
            raise BadRow(f"{where}: there is no column {quote(columns.image)}; {hint}")
        return _as_tuple(row[columns.image])
    given = {}
    for key in IMAGES_KEYS:
        if not is_nothing(row.get(key)):
            given[key] = _as_tuple(row[key])
    images = one_value(given, IMAGES_KEYS, "the row's image", where) or ()
    other = next((key for key in OTHER_IMAGE_KEYS if not is_nothing(row.get(key))), None)
    if not images and other is not None:
        cure = f"say by image={other} that it is the image, or take it out"
        raise BadRow(f"{where}: the row has `{other}` and no `image`; {cure}")
    return images


def _as_tuple(images: Any) -> tuple[Any, ...]:
    """The images in a value that is an image, a list of images, or nothing."""
    if is_nothing(images):
        return ()
    is_list = isinstance(images, Sequence) and not isinstance(images, str | bytes)
    return tuple(images) if is_list else (images,)


def _images_in_order(of_row: tuple[Any, ...], shown: Sequence[ShownImage], where: str) -> tuple[Any, ...]:
    """The images in the order of their places: those of the turns' parts, or those of the row.

    Parts may name images of the row by their numbers.
    """
    inline = tuple(part.image for part in shown if part.image is not None)
    if inline:
        if len(inline) != len(shown):
            fault = "some parts of type image hold their image and others do not"
            raise BadRow(f"{where}: {fault}; give all of them theirs")
        if of_row and of_row != inline:
            fault = "images stand in the turns' parts and in the row's `images`"
            raise BadRow(f"{where}: {fault}; keep those that are meant")
        return inline
    numbers = [part.index for part in shown if part.index is not None]
    if not numbers:
        return of_row
    if len(numbers) != len(shown) or set(numbers) != set(range(len(of_row))):
        named = f"the parts of type image name images {quote(numbers)} by `index`"
        raise BadRow(f"{where}: {named}, and the row has {len(of_row)}; name each of them")
    return tuple(of_row[number] for number in numbers)


def _add_image_places(messages: tuple[Message, ...], count: int, where: str) -> tuple[Message, ...]:
    """The messages with a place for each image.

    Where the text has no `<image>`, they go in front of the first question.
    """
    places = sum(message.text.count(IMAGE) for message in messages)
    if places == count:
        return messages
    if places:
        cure = f"give one {IMAGE} for each image, or none"
        raise BadRow(f"{where}: the text has {places} {IMAGE} and the row has {count} images; {cure}")
    first = next(number for number, message in enumerate(messages) if message.role == "user")
    question = Message("user", f"{IMAGE}\n" * count + messages[first].text)
    return (*messages[:first], question, *messages[first + 1 :])
