"""What an image source is: images with an index, or a stream of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from vision_core.images.decode import decode_image, read_stored
from vision_core.images.pixel_options import AS_STORED, PixelOptions
from vision_core.images.stored import Stored

if TYPE_CHECKING:
    from vision_core.images.annotations import Annotations
    from vision_core.images.label_values import Labels
    from vision_core.images.stream_order import Place


@dataclass(frozen=True)
class ImageRecord:
    """An image `[C, H, W]` with its name and, where it is known, its label; `place` is where a
    stream goes on behind it."""

    id: str
    image: Tensor
    label: int | None = None
    place: Place | None = None


@dataclass(frozen=True)
class UnreadableSample:
    """What a stream gives in place of an image that cannot be used."""

    id: str
    reason: str


class ImageSource(ABC):
    """Images with an index: order and resume are exact.

    Attributes:
        labels: one per image, known without decoding, or None.
        multi_labels: where an image may have several classes or none, the numbers of each image's,
            or None.
        class_names: the names of the labels, or None.
        names_from_texts: whether the classes are texts, numbered in sorted order, so that another
            part may number otherwise.
        description: one line for people.
        fingerprint: a text that is another one when the data is.
        annotations: what is known besides labels, or None.
        num_channels: of a file; with `pixel_options.bands`, images have those bands alone.
    """

    labels: list[int] | None = None
    multi_labels: list[list[int]] | None = None
    class_names: list[str] | None = None
    names_from_texts: bool = False
    description: str = ""
    annotations: Annotations | None = None
    num_channels: int = 3
    pixel_options: PixelOptions = AS_STORED

    @property
    def content_fingerprint(self) -> str:
        """A text that is another one when the files are, whatever is made of them."""
        raise NotImplementedError(f"{type(self).__name__} does not tell when its data changes")

    def state_of_files(self) -> tuple[str, str]:
        """A hash over names and sizes, which a copy of the data elsewhere has too, and one over
        times of change, "" where there are none."""
        return self.fingerprint, ""

    @property
    def fingerprint(self) -> str:
        return f"{self.content_fingerprint} {self.num_channels} {self.pixel_options}"

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> ImageRecord:
        """Image number `index`; raises `UnreadableImage`."""

    def stored(self, index: int) -> Stored:
        """The numbers of image number `index` before they become pixels; raises
        `UnreadableImage`."""
        return Stored(self[index].image.numpy(), (0, 255))

    @abstractmethod
    def id_of(self, index: int) -> str:
        """The name of image number `index`, without decoding it."""

    def file_of(self, index: int) -> str:
        """The file that image number `index` lies in: images of one file, slices of a volume or
        tiles of a slide, are alike."""
        return self.id_of(index)

    @property
    def knows(self) -> frozenset[str]:
        """Which of label, multi_label, mask, depth, captions, copy_of the source has."""
        known = self.annotations.names if self.annotations else frozenset()
        beside = {"label": self.labels, "multi_label": self.multi_labels}
        return known | {name for name, value in beside.items() if value is not None}

    def take_labels(self, read: Labels) -> None:
        """Have the labels that `read_labels` found."""
        self.labels, self.multi_labels = read.labels, read.multi_labels
        self.class_names, self.names_from_texts = read.class_names, read.from_texts


class EncodedImageSource(ImageSource):
    """A source of encoded images: `read_bytes` finds them, the one decoder reads them as
    `pixel_options` says."""

    @abstractmethod
    def read_bytes(self, index: int) -> bytes:
        """The encoded image number `index`; raises `UnreadableImage`."""

    def part_of(self, index: int) -> int | None:
        """Which of the images that its file holds image number `index` is, or None where a file is
        one image."""
        return None

    def stored(self, index: int) -> Stored:
        return read_stored(self.read_bytes(index), self.num_channels, self.pixel_options, self.part_of(index))

    def __getitem__(self, index: int) -> ImageRecord:
        index = int(index)
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        image = decode_image(
            self.read_bytes(index), self.num_channels, self.pixel_options, self.part_of(index)
        )
        return ImageRecord(self.id_of(index), image, None if self.labels is None else self.labels[index])


class ImageStream(ABC):
    """Images without an index: every reader gets its share; the order depends on how many readers
    there are."""

    description: str = ""
    pixel_options: PixelOptions = AS_STORED

    def state_of_files(self) -> tuple[str, str]:
        """As of an `ImageSource`, as far as a stream knows it before it is read."""
        return self.description, ""

    @abstractmethod
    def records(
        self, rank: int, world_size: int, epoch: int, start: Place | None = None
    ) -> Iterator[ImageRecord | UnreadableSample]:
        """One pass over this process's share (in a data worker: that worker's), shuffled by
        `epoch`.

        `start` is the `place` of a record that the same reader gave in a pass of the same number:
        it goes on behind that one.
        """
