"""A part of a source that is held out of training, so that a run on one's own images can be judged
on them."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence

from torch import Tensor

from vision_core.images.source import Annotations, ImageRecord, ImageSource
from vision_core.images.stored import Stored
from vision_core.randomness import numpy_generator

HELD_OUT_SHARE = 0.1
MOST_HELD_OUT = 2000
LARGEST_SHARE = 1 / 3  # of the images, that one file may hold out


class SourcePart(ImageSource):
    """The images `indices` of `source`, in this order, with their labels, names and annotations.

    Attributes:
        held_out: for the part that is trained on, the part that is held out.
    """

    held_out: SourcePart | None = None

    def __init__(self, source: ImageSource, indices: Sequence[int], description: str) -> None:
        self.source = source
        self.indices = list(indices)
        self.description = description
        self.class_names = source.class_names
        self.names_from_texts = source.names_from_texts
        self.labels = choose(source.labels, self.indices)
        self.multi_labels = choose(source.multi_labels, self.indices)
        if source.annotations is not None:
            self.annotations = AnnotationsOfPart(source.annotations, self.indices)
        self.num_channels = source.num_channels
        self.pixel_options = source.pixel_options

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


class AnnotationsOfPart(Annotations):
    """The annotations of a source under the numbers of a part of it."""

    def __init__(self, annotations: Annotations, indices: list[int]) -> None:
        self._of_source = annotations
        self._indices = indices
        self.names = annotations.names
        self.mask_names = annotations.mask_names

    @property
    def image_ids(self) -> list[str] | None:
        return choose(self._of_source.image_ids, self._indices)

    @property
    def copy_of(self) -> list[str] | None:
        return choose(self._of_source.copy_of, self._indices)

    def mask(self, index: int) -> Tensor:
        return self._of_source.mask(self._indices[index])

    def foreground(self, index: int) -> Tensor:
        return self._of_source.foreground(self._indices[index])

    def depth(self, index: int) -> Tensor:
        return self._of_source.depth(self._indices[index])

    def captions(self, index: int) -> list[str]:
        return self._of_source.captions(self._indices[index])


def choose(values: list | None, indices: Sequence[int]) -> list | None:
    """The values at `indices`, or None where there are none."""
    return None if values is None else [values[index] for index in indices]


def hold_out(source: ImageSource, seed: int, most: int = MOST_HELD_OUT) -> SourcePart:
    """Split a source into a part to train on and its `held_out`: a tenth of the images, at most
    `most`, drawn by `seed`.

    Images of one file, such as slices of a volume or tiles of a slide, stay on one side. Where
    every file holds more images than that, the smallest one is held out, if it has no more than a
    third of them. Where there are labels, every class that had an image keeps one to train on. The
    held-out part may be empty.
    """
    order = numpy_generator(seed, "held out").permutation(len(source)).tolist()
    most = min(int(HELD_OUT_SHARE * len(source)), most)
    held_out = draw_files(source, order, most, int(LARGEST_SHARE * len(source)), keep_classes=True)
    trained_on = [index for index in range(len(source)) if index not in held_out]
    count = f"{len(held_out):,} of them"
    part = SourcePart(source, trained_on, f"{source.description}; {count} are held out of training")
    part.held_out = SourcePart(
        source, sorted(held_out), f"{count} held out of training, of {source.description}"
    )
    return part


def draw_files(
    source: ImageSource, order: Sequence[int], count: int, largest: int, keep_classes: bool = False
) -> set[int]:
    """Draw all images of some files, at most `count` images; where every file is larger, draw the
    smallest file with at most `largest` images.

    order: all images of the source, as they are drawn; a file is drawn with its first image.
    keep_classes: leave at least one image of every class.
    """
    images_of_file: dict[str, list[int]] = {}
    for index in order:
        images_of_file.setdefault(source.file_of(index), []).append(index)
    left = Counter(source.labels if keep_classes else None)
    drawn: set[int] = set()
    for images in images_of_file.values():
        if len(drawn) == count:
            break
        if len(drawn) + len(images) <= count and _keeps_classes(images, source.labels, left):
            if left:
                left.subtract(source.labels[index] for index in images)
            drawn.update(images)
    if drawn or not count:
        return drawn
    small_files = [images for images in images_of_file.values() if len(images) <= largest]
    possible = [images for images in small_files if _keeps_classes(images, source.labels, left)]
    return set(min(possible, key=len, default=()))


def _keeps_classes(images: Sequence[int], labels: list[int] | None, left: Counter) -> bool:
    """Whether every class has more images left than these; `left` is empty where that does not
    matter."""
    if not left:
        return True
    taken = Counter(labels[index] for index in images)
    return all(left[label] > number for label, number in taken.items())
