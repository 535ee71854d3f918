"""What a data source knows about its images besides a label: masks, depth, captions, and which
image another was made from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from vision_core.errors import UserError
from vision_core.images.decode import decode_values, picture_size
from vision_core.images.source import EncodedImageSource
from vision_core.unreadable import UnreadableImage

IGNORED = 255
UNITS_PER_METRE = 1000.0
Read = Callable[[], list]


@dataclass
class Annotations:
    """Masks and depths as images beside `images`, row by row; texts and ids are read when they are
    first asked for.

    ignore: values of the masks' files that count nowhere. depth_scale: units of the depths' files
    per metre; 0 stands for unknown.
    read_...: the columns, each row a text, a number, a list of them or None.
    """

    images: EncodedImageSource
    masks: EncodedImageSource | None = None
    depths: EncodedImageSource | None = None
    ignore: tuple[int, ...] = ()
    depth_scale: float = UNITS_PER_METRE
    read_captions: Read | None = None
    read_image_ids: Read | None = None
    read_copy_of: Read | None = None
    mask_names: list[str] | None = None

    @property
    def names(self) -> frozenset[str]:
        """Which of mask, depth, captions, copy_of there are."""
        there = {
            "mask": self.masks,
            "depth": self.depths,
            "captions": self.read_captions,
            "copy_of": self.read_copy_of,
        }
        return frozenset(name for name, value in there.items() if value is not None)

    def mask(self, index: int) -> Tensor:
        """`[H, W]` int64 class numbers, `IGNORED` for what counts nowhere. Raises UnreadableImage,
        and UserError for a value above 255."""
        mask = self._numbers(self.masks, index, "mask").long()
        mask[torch.isin(mask, torch.tensor(self.ignore, dtype=torch.long))] = IGNORED
        if mask.max() > IGNORED:
            raise UserError(
                f"mask {self.masks.id_of(index)} holds the value {int(mask.max())}; class numbers are 0 to 254, and 255 counts nowhere"
            )
        return mask

    def foreground(self, index: int) -> Tensor:
        """`[H, W]` bool: what is neither class 0 nor ignored."""
        mask = self.mask(index)
        return (mask != 0) & (mask != IGNORED)

    def depth(self, index: int) -> Tensor:
        """`[H, W]` float32 metres, 0 where it is not known. Raises UnreadableImage."""
        return self._numbers(self.depths, index, "depth").float() / self.depth_scale

    def captions(self, index: int) -> list[str]:
        """The texts that describe image number `index`."""
        if self.read_captions is None:
            raise _missing(self.images, "captions")
        return self._captions[index]

    @cached_property
    def image_ids(self) -> list[str] | None:
        """The images' own names, or None."""
        return (
            None
            if self.read_image_ids is None
            else [row[0] if row else "" for row in _rows(self.read_image_ids())]
        )

    @cached_property
    def copy_of(self) -> list[str] | None:
        """For every image the id of the one from which it was made, empty where there is none; or
        None."""
        return (
            None
            if self.read_copy_of is None
            else [row[0] if row else "" for row in _rows(self.read_copy_of())]
        )

    @cached_property
    def _captions(self) -> list[list[str]]:
        return _rows(self.read_captions())

    def _numbers(self, source: EncodedImageSource | None, index: int, kind: str) -> Tensor:
        """A file that is readable but of another kind or shape is the user's mistake, not one bad
        image."""
        if source is None:
            raise _missing(self.images, kind)
        try:
            values = decode_values(source.read_bytes(index), self.images.pixel_options.max_pixels)
        except UnreadableImage as error:
            what, _, found = error.reason.partition(" ")
            if what not in ("not_numbers", "unsupported_mode"):
                raise
            raise UserError(
                f"{kind} {source.id_of(index)} is stored as {found}; save it as PNG with one channel of 8 or 16 bits"
            ) from None
        if self.images.num_channels == 3:  # files of other bands have no header that is read by itself
            size = picture_size(
                self.images.read_bytes(index), self.images.pixel_options, self.images.part_of(index)
            )
            _check_shape(values.shape, size, f"{kind} {source.id_of(index)}")
        return values


def make_annotations(
    images: EncodedImageSource,
    options: dict[str, str],
    masks: EncodedImageSource | None = None,
    depths: EncodedImageSource | None = None,
    captions: Read | None = None,
    image_ids: Read | None = None,
    copy_of: Read | None = None,
) -> Annotations | None:
    """Annotations with the options `ignore` and `depth_scale` as they are written in a source, or
    None where there is nothing.

    Raises UserError for an option that is no number, or that speaks of what is not there.
    """
    for option, needed, kind in (("ignore", masks, "mask"), ("depth_scale", depths, "depth")):
        if option in options and needed is None:
            raise UserError(
                f"{images.description}: {option} needs a {kind} for each image; name them by {kind}=WHERE"
            )
    if all(part is None for part in (masks, depths, captions, image_ids, copy_of)):
        return None
    ignore, scale = _ignore(options.get("ignore")), _scale(options.get("depth_scale"))
    return Annotations(images, masks, depths, ignore, scale, captions, image_ids, copy_of)


def holds_texts(arrow_type) -> bool:
    """Whether a column of this pyarrow type holds texts, whole numbers (such as ids) or lists of
    them."""
    from pyarrow import types

    if types.is_list(arrow_type) or types.is_large_list(arrow_type):
        arrow_type = arrow_type.value_type
    return types.is_string(arrow_type) or types.is_large_string(arrow_type) or types.is_integer(arrow_type)


def _rows(values: list) -> list[list[str]]:
    lists = (value if isinstance(value, list) else [value] for value in values)
    return [[str(text) for text in row if text is not None] for row in lists]


def _check_shape(found: tuple[int, int], image: tuple[int, int], name: str) -> None:
    """Refuse what is not the image made larger or smaller, but for rounding to whole pixels."""
    height, width = found
    if abs(width - image[1] * height / image[0]) > 1 and abs(height - image[0] * width / image[1]) > 1:
        raise UserError(
            f"{name} is {height} x {width} pixels (height x width) and its image {image[0]} x {image[1]}; "
            "give one that shows the whole image in the same proportions"
        )


def _missing(images: EncodedImageSource, kind: str) -> UserError:
    return UserError(
        f"{images.description}: no {kind} is known; name where it is by {kind}=WHERE, or another data set"
    )


def _ignore(text: str | None) -> tuple[int, ...]:
    try:
        return tuple(int(value) for value in text.split(",")) if text else ()
    except ValueError:
        raise UserError(
            f"ignore={text} is not possible; give mask values such as ignore=0 or ignore=11,12"
        ) from None


def _scale(text: str | None) -> float:
    try:
        scale = UNITS_PER_METRE if text is None else float(text)
    except ValueError:
        scale = 0.0
    if not 0 < scale < float("inf"):
        raise UserError(
            f"depth_scale={text} is not possible; give units per metre, such as 1000 for millimetres"
        )
    return scale
