"""Refuses placeholders in a text for what is not shown to the model.

These are films, sounds, boxes, and images in another spelling than `<image>`.
"""

from __future__ import annotations

import re

from fusion.conversations.conversation import BadRow, quote

# <image_1>, <image 1>, <image-1>, <image1> (MMMU and others), <|image_1|> (Phi-3), <|image|> (Llama
# 3.2), <|image_pad|> (Qwen), <image_placeholder> (DeepSeek), <ImageHere> (InternLM),
# <start_of_image> (Gemma 3)
OTHER_IMAGE = re.compile(
    r"""
    <\|?image[ ]?[_-]?\d+\|?>
    | <\|image\|>
    | <\|?image_(?:pad|placeholder)\|?>
    | <ImageHere>
    | <start_of_image>
    """,
    re.VERBOSE,
)
BOX = re.compile(r"<(bbox|ref-object)>")  # ms-swift's, filled in from `objects` of the row
FILM = re.compile(r"<(video|audio)>")


def refuse_placeholders(text: str, role: str, where: str) -> None:
    """Raises BadRow for a placeholder into which nothing would be put.

    Another spelling of an image's place is refused wherever it is. So is a box's, unless a closing
    tag shows that it is text. `<video>` and `<audio>` are also tags of HTML, about which people ask.
    They are placeholders in a user's turn where no closing tag follows and one is at the turn's
    beginning or end, or alone on its line. In the middle of a sentence, in code, and in answers they
    are text. (A row that has a video is refused for its key anyway.)
    """
    found = OTHER_IMAGE.search(text)
    if found:
        cure = "write <image> where an image is shown, and its name where it is spoken of"
        raise BadRow(f"{where}: a text has {found[0]} ({quote(text)}); {cure}")
    found = BOX.search(text)
    if found and f"</{found[1]}>" not in text:
        cure = "write names and coordinates into the text"
        raise BadRow(f"{where}: a text has {found[0]}, which is not filled in from `objects`; {cure}")
    if role == "user":
        _refuse_films(text, where)


def _refuse_films(text: str, where: str) -> None:
    for found in FILM.finditer(text):
        name = found[1]
        before = text[: found.start()]
        after = text[found.end() :]
        begins_or_ends = not before.strip() or not after.strip()
        is_alone = before.endswith("\n") and after.startswith("\n")
        if (begins_or_ends or is_alone) and f"</{name}>" not in text:
            raise BadRow(
                f"{where}: a question has the placeholder {found[0]} ({quote(text)}): only images are seen; "
                "leave such rows out (of a video, frames can be given as images)"
            )
