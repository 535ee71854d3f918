"""A part of a source that is held out of training, so that a run on one's own images can be judged
on them."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence

from torch import Tensor

from vision_core.images.source import ImageRecord, ImageSource
from vision_core.images.stored import Stored
from vision_core.randomness import numpy_generator

HELD_OUT_SHARE = 0.1
MOST_HELD_OUT = 2000
LARGEST_SHARE = 1 / 3  # of the images, that one file may hold out


class SourcePart(ImageSource):
    """The images `indices` of `source`, in this order, with their labels, names and annotations.

    Attributes:
        held_out: of the part that is trained on, the other one.
    """

    held_out: SourcePart | None = None

    def __init__(self, source: ImageSource, indices: Sequence[int], description: str) -> None:
        self.source, self.indices, self.description = source, list(indices), description
        self.class_names, self.names_from_texts = source.class_names, source.names_from_texts
        self.labels = chosen(source.labels, self.indices)
        self.multi_labels = chosen(source.multi_labels, self.indices)
        self.annotations = (
            None if source.annotations is None else _AnnotationsOfPart(source.annotations, self.indices)
        )
        self.num_channels, self.pixel_options = source.num_channels, source.pixel_options

    @property
    def fingerprint(self) -> str:
        places = hashlib.blake2b(repr(self.indices).encode(), digest_size=16).hexdigest()
        return f"{self.source.fingerprint} {places}"

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> ImageRecord:
        return self.source[self.indices[index]]

    def file_of(self, index: int) -> str:
        return self.source.file_of(self.indices[index])

    def stored(self, index: int) -> Stored:
        return self.source.stored(self.indices[index])

    def id_of(self, index: int) -> str:
        return self.source.id_of(self.indices[index])


class _AnnotationsOfPart:
    """`Annotations` under the numbers of a part."""

    def __init__(self, annotations, indices: list[int]) -> None:
        self._whole, self._indices = annotations, indices
        self.names, self.mask_names = annotations.names, annotations.mask_names

    @property
    def image_ids(self) -> list[str] | None:
        return chosen(self._whole.image_ids, self._indices)

    @property
    def copy_of(self) -> list[str] | None:
        return chosen(self._whole.copy_of, self._indices)

    def mask(self, index: int) -> Tensor:
        return self._whole.mask(self._indices[index])

    def foreground(self, index: int) -> Tensor:
        return self._whole.foreground(self._indices[index])

    def depth(self, index: int) -> Tensor:
        return self._whole.depth(self._indices[index])

    def captions(self, index: int) -> list[str]:
        return self._whole.captions(self._indices[index])


def chosen(values: list | None, indices: Sequence[int]) -> list | None:
    """The values at `indices`, or None where there are none."""
    return None if values is None else [values[index] for index in indices]


def hold_out(source: ImageSource, seed: int, most: int = MOST_HELD_OUT) -> SourcePart:
    """What is trained on, with its `held_out`: a tenth of the images, at most `most`, drawn by
    `seed`.

    Images of one file, such as slices of a volume or tiles of a slide, stay on one side. Where
    every file holds more images than that, the smallest one is held out, if it has no more than a
    third of them. Where there are labels, every class that had an image keeps one to train on. The
    held-out part may be empty.
    """
    order = numpy_generator(seed, "held out").permutation(len(source)).tolist()
    count = min(int(HELD_OUT_SHARE * len(source)), most)
    held_out = draw_files(source, order, count, int(LARGEST_SHARE * len(source)), keep_classes=True)
    kept = [index for index in range(len(source)) if index not in held_out]
    count = f"{len(held_out):,} of them"
    part = SourcePart(source, kept, f"{source.description}; {count} are held out of training")
    part.held_out = SourcePart(
        source, sorted(held_out), f"{count} held out of training, of {source.description}"
    )
    return part


def draw_files(
    source: ImageSource, order: Sequence[int], count: int, largest: int, keep_classes: bool = False
) -> set[int]:
    """The images of whole files, `count` at most; where no file is that small, those of the
    smallest one with `largest` images at most.

    order: all images of the source, as they are drawn; a file is drawn with its first image.
    keep_classes: leave an image of every class.
    """
    images_of: dict[str, list[int]] = {}
    for index in order:
        images_of.setdefault(source.file_of(index), []).append(index)
    left = Counter(source.labels if keep_classes else None)
    drawn: set[int] = set()
    for images in images_of.values():
        if len(drawn) == count:
            break
        if len(drawn) + len(images) <= count and _keeps_classes(images, source.labels, left):
            left.subtract(source.labels[index] for index in images if left)
            drawn.update(images)
    if count and not drawn:
        possible = (
            images
            for images in images_of.values()
            if len(images) <= largest and _keeps_classes(images, source.labels, left)
        )
        drawn.update(min(possible, key=len, default=()))
    return drawn


def _keeps_classes(images: Sequence[int], labels: list[int] | None, left: Counter) -> bool:
    """Whether every class has more images left than these; `left` is empty where that does not
    matter."""
    taken = Counter(labels[index] for index in images) if left else Counter()
    return all(left[label] > number for label, number in taken.items())
