"""A part of a source that is held out of training, so that a run on one's own images can be judged on them."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence

from torch import Tensor

from vision_core.images.sources import ImageRecord, ImageSource
from vision_core.images.stored import Stored
from vision_core.randomness import numpy_generator

HELD_OUT_SHARE = 0.1
MOST_HELD_OUT = 2000


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
        self.annotations = None if source.annotations is None else _AnnotationsOfPart(source.annotations, self.indices)
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
    """What is trained on, with its `held_out`: a tenth of the images, at most `most`, drawn by `seed`.

    Images of one file, such as slices of a volume or tiles of a slide, stay on one side. Where there are labels, every class that had an
    image keeps one to train on. The held-out part may be empty.
    """
    held_out = _drawn(source, min(int(HELD_OUT_SHARE * len(source)), most), seed)
    kept = [index for index in range(len(source)) if index not in held_out]
    count = f"{len(held_out):,} of them"
    part = SourcePart(source, kept, f"{source.description}; {count} are held out of training")
    part.held_out = SourcePart(source, sorted(held_out), f"{count} held out of training, of {source.description}")
    return part


def _drawn(source: ImageSource, count: int, seed: int) -> set[int]:
    images_of: dict[str, list[int]] = {}
    for index in range(len(source)):
        images_of.setdefault(source.file_of(index), []).append(index)
    left = Counter(source.labels)
    drawn: set[int] = set()
    for index in numpy_generator(seed, "held out").permutation(len(source)).tolist():
        if len(drawn) == count:
            break
        together = images_of[source.file_of(index)]
        labels = Counter() if source.labels is None else Counter(source.labels[each] for each in together)
        fits = len(drawn) + len(together) <= count
        if index not in drawn and fits and all(left[label] > number for label, number in labels.items()):
            left -= labels
            drawn.update(together)
    return drawn
