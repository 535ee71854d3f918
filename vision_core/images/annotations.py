"""Annotations that lie in files: masks and depths as images, captions and ids as columns of texts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from vision_core.errors import UserError
from vision_core.images.decode import decode_values, picture_size
from vision_core.images.source import MASK_IGNORED, Annotations, EncodedImageSource
from vision_core.unreadable import UnreadableImage

UNITS_PER_METRE = 1000.0
NOT_NUMBERS = ("not_numbers", "unsupported_mode")  # reasons for which the user has to save the file anew
ColumnReader = Callable[[], list]


@dataclass
class FileAnnotations(Annotations):
    """Masks and depths are images beside `images`, row by row. Texts and ids are read when they are
    first asked for.

    ignore: values in the masks' files that count nowhere.
    depth_scale: units of the depths' files per metre; the value 0 in a file means unknown.
    read_captions, read_image_ids, read_copy_of: read a column; each row is a text, a number, a list
        of them or None.
    """

    images: EncodedImageSource
    masks: EncodedImageSource | None = None
    depths: EncodedImageSource | None = None
    ignore: tuple[int, ...] = ()
    depth_scale: float = UNITS_PER_METRE
    read_captions: ColumnReader | None = None
    read_image_ids: ColumnReader | None = None
    read_copy_of: ColumnReader | None = None

    @property
    def names(self) -> frozenset[str]:
        parts = {
            "mask": self.masks,
            "depth": self.depths,
            "captions": self.read_captions,
            "copy_of": self.read_copy_of,
        }
        return frozenset(name for name, part in parts.items() if part is not None)

    def mask(self, index: int) -> Tensor:
        """Read `[H, W]` int64 class numbers, `MASK_IGNORED` for what counts nowhere.

        Raises UnreadableImage, and UserError for a value above 255.
        """
        mask = self._read_numbers(self.masks, index, "mask").long()
        mask[torch.isin(mask, torch.tensor(self.ignore, dtype=torch.long))] = MASK_IGNORED
        if mask.max() > MASK_IGNORED:
            raise UserError(
                f"mask {self.masks.id_of(index)} holds the value {int(mask.max())}; "
                "class numbers are 0 to 254, and 255 counts nowhere"
            )
        return mask

    def foreground(self, index: int) -> Tensor:
        """`[H, W]` bool: false where the mask is class 0 or ignored."""
        mask = self.mask(index)
        return (mask != 0) & (mask != MASK_IGNORED)

    def depth(self, index: int) -> Tensor:
        """Read `[H, W]` float32 metres, 0 where the depth is not known. Raises UnreadableImage."""
        return self._read_numbers(self.depths, index, "depth").float() / self.depth_scale

    def captions(self, index: int) -> list[str]:
        if self.read_captions is None:
            raise _missing(self.images, "captions")
        return self._all_captions[index]

    @cached_property
    def image_ids(self) -> list[str] | None:
        return _first_texts(self.read_image_ids)

    @cached_property
    def copy_of(self) -> list[str] | None:
        return _first_texts(self.read_copy_of)

    @cached_property
    def _all_captions(self) -> list[list[str]]:
        return _lists_of_texts(self.read_captions())

    def _read_numbers(self, source: EncodedImageSource | None, index: int, kind: str) -> Tensor:
        """Read the mask or depth of an image and check that its proportions are the image's.

        Raises UserError for a file that is readable but of another kind or shape, which is a
        mistake in the data and not one bad image.
        """
        if source is None:
            raise _missing(self.images, kind)
        name = f"{kind} {source.id_of(index)}"
        try:
            values = decode_values(source.read_bytes(index), self.images.pixel_options.max_pixels)
        except UnreadableImage as error:
            what, _, found = error.reason.partition(" ")
            if what not in NOT_NUMBERS:
                raise
            raise UserError(
                f"{name} is stored as {found}; save it as PNG with one channel of 8 or 16 bits"
            ) from None
        if self.images.num_channels == 3:  # the size of images with other bands is not in a header
            data = self.images.read_bytes(index)
            size = picture_size(data, self.images.pixel_options, self.images.part_of(index))
            _check_shape(values.shape, size, name)
        return values


def make_annotations(
    images: EncodedImageSource,
    options: dict[str, str],
    masks: EncodedImageSource | None = None,
    depths: EncodedImageSource | None = None,
    captions: ColumnReader | None = None,
    image_ids: ColumnReader | None = None,
    copy_of: ColumnReader | None = None,
) -> FileAnnotations | None:
    """Make annotations with the options `ignore` and `depth_scale` of a source text; None where
    there are none.

    Raises UserError for an option that is not a number, or that needs masks or depths which are not
    there.
    """
    for option, needed, kind in (("ignore", masks, "mask"), ("depth_scale", depths, "depth")):
        if option in options and needed is None:
            raise UserError(
                f"{images.description}: {option} needs a {kind} for each image; name them by {kind}=WHERE"
            )
    if all(part is None for part in (masks, depths, captions, image_ids, copy_of)):
        return None
    return FileAnnotations(
        images=images,
        masks=masks,
        depths=depths,
        ignore=_ignored_values(options.get("ignore")),
        depth_scale=_units_per_metre(options.get("depth_scale")),
        read_captions=captions,
        read_image_ids=image_ids,
        read_copy_of=copy_of,
    )


def _lists_of_texts(values: list) -> list[list[str]]:
    """The rows of a column as lists of texts, without what is missing."""
    rows = []
    for value in values:
        items = value if isinstance(value, list) else [value]
        rows.append([str(item) for item in items if item is not None])
    return rows


def _first_texts(read: ColumnReader | None) -> list[str] | None:
    """The first text of each row of a column, empty where there is none; None without a column."""
    if read is None:
        return None
    return [next(iter(texts), "") for texts in _lists_of_texts(read())]


def _check_shape(found: tuple[int, int], image: tuple[int, int], name: str) -> None:
    """Refuse a shape that is not the image's, made larger or smaller and rounded to full pixels."""
    height, width = found
    image_height, image_width = image
    too_wide = abs(width - image_width * height / image_height) > 1
    too_high = abs(height - image_height * width / image_width) > 1
    if too_wide and too_high:
        raise UserError(
            f"{name} is {height} x {width} pixels (height x width) and its image "
            f"{image_height} x {image_width}; give one that shows the whole image in the same proportions"
        )


def _missing(images: EncodedImageSource, kind: str) -> UserError:
    return UserError(
        f"{images.description}: no {kind} is known; name where it is by {kind}=WHERE, or another data set"
    )


def _ignored_values(text: str | None) -> tuple[int, ...]:
    if not text:
        return ()
    try:
        return tuple(map(int, text.split(",")))
    except ValueError:
        raise UserError(
            f"ignore={text} is not possible; give mask values such as ignore=0 or ignore=11,12"
        ) from None


def _units_per_metre(text: str | None) -> float:
    if text is None:
        return UNITS_PER_METRE
    try:
        scale = float(text)
    except ValueError:
        scale = 0.0
    if not 0 < scale < float("inf"):
        raise UserError(
            f"depth_scale={text} is not possible; give units per metre, such as 1000 for millimetres"
        )
    return scale
