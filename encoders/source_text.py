"""The text that names an encoder: `KIND:NAME?option=value`, or a folder.

    hf:google/siglip-base-patch16-224?layers=-2&norm=false
    outputs/dinov2-1?image_size=336&grid=24
    untrained:timm:vit_small_patch16_224

The options are those keyword arguments of `load_encoder` whose values can be written down.
"""

from __future__ import annotations

import os
import re
from typing import Any, get_args

from encoders.positions import POSITION_OPTIONS
from encoders.preprocess import Preprocess
from vision_core.errors import UserError
from vision_core.source_text import refuse_unknown, split_options, true_or_false, whole_number

UNTRAINED = "untrained:"
FOLDER = "folder"
RAW_PIXELS = "raw_pixels"
ENCODER_KINDS = ("hf", "timm", "open_clip", "dinov2_pth", "tiny")


def split_source(text: str) -> tuple[str, dict[str, Any]]:
    """The text without its options, and its options as keyword arguments of `load_encoder`.

    A path that exists is taken as it is, also where its name holds a `?`.

    Raises UserError for an unknown option, with the nearest known one, and for a value that cannot
    be read.
    """
    if _exists(text):
        return text, {}
    name = f"encoder {text!r}"
    source, written = split_options(text, name)
    refuse_unknown(written, READERS, name, "an encoder")
    options = {}
    for option in written:
        options[option] = READERS[option](written, option, name)
    return source, options


def split_kind(source: str) -> tuple[str, str]:
    """The kind of a source without options, and the name behind its colon.

    The kind is `folder` for a folder on this machine, whose name is its path, and empty for a text
    that names neither a folder nor a kind.
    """
    if os.path.isdir(source):
        return FOLDER, source
    if source == RAW_PIXELS:
        return RAW_PIXELS, ""
    kind, _, name = source.partition(":")
    if kind in ENCODER_KINDS and name:
        return kind, name
    return "", source


def _exists(text: str) -> bool:
    """Whether the text, behind its kind and the name of an open_clip model, is a path that
    exists."""
    text = text.removeprefix(UNTRAINED)
    kind, _, name = text.partition(":")
    if kind == "open_clip":
        name = name.partition("/")[2]
    return os.path.exists(text) or (kind in ENCODER_KINDS and os.path.exists(name))


def _layers(options: dict[str, str], key: str, name: str) -> tuple[int, ...]:
    """Layers with commas between them, such as `-2` or `1,2,3,4`."""
    if not re.fullmatch(r"-?\d+(,-?\d+)*", options[key], re.ASCII):
        raise UserError(
            f"{name}: {key}={options[key]} cannot be read; write one layer, or several as 1,2,3,4"
        )
    return tuple(map(int, options[key].split(",")))


def _side(options: dict[str, str], key: str, name: str) -> int:
    """A number of pixels or patches, at least one."""
    side = whole_number(options, key, name, 0)
    if side == 0:
        raise UserError(f"{name}: {key}=0 is too small; write at least {key}=1")
    return side


def _preprocess(options: dict[str, str], key: str, name: str) -> str:
    """One of the ways of `ImageTransform.preprocess`."""
    ways = get_args(Preprocess)
    if options[key] not in ways:
        raise UserError(f"{name}: {key}={options[key]} does not exist; write {' or '.join(ways)}")
    return options[key]


# option -> what reads its value: (options, key, name of the text in messages) -> value
READERS = {
    "layers": _layers,
    "norm": true_or_false,
    "image_size": _side,
    "grid": _side,
    "preprocess": _preprocess,
    **POSITION_OPTIONS,
}
