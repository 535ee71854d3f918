"""The types of image sources: images with an index or a stream of them, and what is known beside an
image."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from vision_core.images.decode import decode_image, read_stored
from vision_core.images.label_values import Labels
from vision_core.images.pixel_options import AS_STORED, PixelOptions
from vision_core.images.stored import Stored

if TYPE_CHECKING:
    from vision_core.images.stream_order import Place

MASK_IGNORED = 255  # the value of a mask's pixels that count nowhere


@dataclass(frozen=True)
class ImageRecord:
    """One image `[C, H, W]` of a source.

    label: its class number where it is known.
    place: where a stream continues after this image; None in a source with an index.
    """

    id: str
    image: Tensor
    label: int | None = None
    place: Place | None = None


@dataclass(frozen=True)
class UnreadableSample:
    """A stream gives this in place of an image that cannot be used."""

    id: str
    reason: str


class Annotations(ABC):
    """What a source knows about its images besides labels.

    Attributes:
        names: which of mask, depth, captions, copy_of there are.
        mask_names: the names of the classes in masks, or None.
        image_ids: the images' own names, or None.
        copy_of: for every image the id of the one from which it was made, empty where there is
            none; or None.
    """

    names: frozenset[str]
    mask_names: list[str] | None = None
    image_ids: list[str] | None = None
    copy_of: list[str] | None = None

    @abstractmethod
    def mask(self, index: int) -> Tensor:
        """`[H, W]` int64 class numbers, `MASK_IGNORED` for what counts nowhere."""

    @abstractmethod
    def foreground(self, index: int) -> Tensor:
        """`[H, W]` bool: the pixels that show an object."""

    @abstractmethod
    def depth(self, index: int) -> Tensor:
        """`[H, W]` float32 metres, 0 where the depth is not known."""

    @abstractmethod
    def captions(self, index: int) -> list[str]:
        """The texts that describe image number `index`."""


class ImageSource(ABC):
    """Images with an index: order and resume are exact.

    Attributes:
        labels: one per image, known without decoding, or None.
        multi_labels: the class numbers of each image where it may have several classes or none; or
            None.
        class_names: the names of the labels, or None.
        names_from_texts: whether the classes are texts that were numbered in sorted order, so that
            another part of the data may number them differently.
        description: one line for people.
        fingerprint: a text that changes when the data or its options change.
        annotations: what is known besides labels, or None.
        num_channels: the channels of a file; with `pixel_options.bands`, images have those bands
            only.
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
        """A text that changes when the files change, whatever pixels are made of them."""
        raise NotImplementedError(f"{type(self).__name__} does not tell when its data changes")

    def state_of_files(self) -> tuple[str, str]:
        """Two hashes: one over names and sizes, which a copy of the data on another machine
        shares, and one over modification times, "" where there are none."""
        return self.fingerprint, ""

    @property
    def fingerprint(self) -> str:
        return f"{self.content_fingerprint} {self.num_channels} {self.pixel_options}"

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> ImageRecord:
        """Give image number `index`; raises `UnreadableImage`."""

    def stored(self, index: int) -> Stored:
        """Give the values of image number `index` before they become pixels; raises
        `UnreadableImage`."""
        return Stored(self[index].image.numpy(), full_scale=(0, 255))

    @abstractmethod
    def id_of(self, index: int) -> str:
        """The name of image number `index`, without decoding it."""

    def file_of(self, index: int) -> str:
        """The file that holds image number `index`. Images of one file, such as the slices of a
        volume or the tiles of a slide, resemble each other."""
        return self.id_of(index)

    @property
    def knows(self) -> frozenset[str]:
        """Which of label, multi_label, mask, depth, captions, copy_of the source has."""
        known = set(self.annotations.names) if self.annotations else set()
        if self.labels is not None:
            known.add("label")
        if self.multi_labels is not None:
            known.add("multi_label")
        return frozenset(known)

    def take_labels(self, read: Labels) -> None:
        """Take over the labels that `read_labels` found."""
        self.labels = read.labels
        self.multi_labels = read.multi_labels
        self.class_names = read.class_names
        self.names_from_texts = read.from_texts

    def label_of(self, index: int) -> int | None:
        """The label of image number `index`, or None where the source has none."""
        return None if self.labels is None else self.labels[index]


class EncodedImageSource(ImageSource):
    """A source of encoded images: `read_bytes` finds them, and the decoder reads them as
    `pixel_options` says."""

    @abstractmethod
    def read_bytes(self, index: int) -> bytes:
        """Give the bytes of the encoded image number `index`; raises `UnreadableImage`."""

    def part_of(self, index: int) -> int | None:
        """The number of image `index` within its file, or None where the file is one image."""
        return None

    def stored(self, index: int) -> Stored:
        data = self.read_bytes(index)
        return read_stored(data, self.num_channels, self.pixel_options, self.part_of(index))

    def __getitem__(self, index: int) -> ImageRecord:
        index = int(index)
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        data = self.read_bytes(index)
        image = decode_image(data, self.num_channels, self.pixel_options, self.part_of(index))
        return ImageRecord(self.id_of(index), image, self.label_of(index))


class ImageStream(ABC):
    """Images without an index. Every reader gets its share, and the order depends on the number of
    readers."""

    description: str = ""
    pixel_options: PixelOptions = AS_STORED

    def state_of_files(self) -> tuple[str, str]:
        """The same as for an `ImageSource`, as far as a stream knows it before it is read."""
        return self.description, ""

    @abstractmethod
    def records(
        self, rank: int, world_size: int, epoch: int, start: Place | None = None
    ) -> Iterator[ImageRecord | UnreadableSample]:
        """Make one pass over the share of this process (inside a data worker: of that worker),
        shuffled by `epoch`.

        start: the `place` of a record that the same reader gave in a pass of the same number; the
            pass continues after that record.
        """
