"""One string names a data source: `kind:where?option=value&option=value`."""

from __future__ import annotations

import difflib
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from vision_core.errors import UserError
from vision_core.images.decode import decode_image, read_stored
from vision_core.images.pixel_options import AS_STORED, PIXEL_OPTIONS, PixelOptions, Scale, take_pixel_options
from vision_core.images.stored import Stored
from vision_core.printable import printable

if TYPE_CHECKING:
    from vision_core.images.annotations import Annotations
    from vision_core.images.label_values import Labels
    from vision_core.images.stream_order import Place


@dataclass(frozen=True)
class ImageRecord:
    """An image `[C, H, W]` with its name and, where it is known, its label; `place` is where a stream goes on behind it."""

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
        multi_labels: where an image may have several classes or none, the numbers of each image's, or None.
        class_names: the names of the labels, or None.
        names_from_texts: whether the classes are texts, numbered in sorted order, so that another part may number otherwise.
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
        """A hash over names and sizes, which a copy of the data elsewhere has too, and one over times of change, "" where there are none."""
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
        """The numbers of image number `index` before they become pixels; raises `UnreadableImage`."""
        return Stored(self[index].image.numpy(), (0, 255))

    @abstractmethod
    def id_of(self, index: int) -> str:
        """The name of image number `index`, without decoding it."""

    def file_of(self, index: int) -> str:
        """The file that image number `index` lies in: images of one file, slices of a volume or tiles of a slide, are alike."""
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
    """A source of encoded images: `read_bytes` finds them, the one decoder reads them as `pixel_options` says."""

    @abstractmethod
    def read_bytes(self, index: int) -> bytes:
        """The encoded image number `index`; raises `UnreadableImage`."""

    def part_of(self, index: int) -> int | None:
        """Which of the images that its file holds image number `index` is, or None where a file is one image."""
        return None

    def stored(self, index: int) -> Stored:
        return read_stored(self.read_bytes(index), self.num_channels, self.pixel_options, self.part_of(index))

    def __getitem__(self, index: int) -> ImageRecord:
        index = int(index)
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        image = decode_image(self.read_bytes(index), self.num_channels, self.pixel_options, self.part_of(index))
        return ImageRecord(self.id_of(index), image, None if self.labels is None else self.labels[index])


class ImageStream(ABC):
    """Images without an index: every reader gets its share; the order depends on how many readers there are."""

    description: str = ""
    pixel_options: PixelOptions = AS_STORED

    def state_of_files(self) -> tuple[str, str]:
        """As of an `ImageSource`, as far as a stream knows it before it is read."""
        return self.description, ""

    @abstractmethod
    def records(self, rank: int, world_size: int, epoch: int, start: Place | None = None) -> Iterator[ImageRecord | UnreadableSample]:
        """One pass over this process's share (in a data worker: that worker's), shuffled by `epoch`.

        `start` is the `place` of a record that the same reader gave in a pass of the same number: it goes on behind that one.
        """


BESIDE_IMAGES = ("mask", "ignore", "depth", "depth_scale")
IN_COLUMNS = (*BESIDE_IMAGES, "captions", "copy_of")
LINKS_AND_TILES = ("follow_links", "tile", "level", "background")
KINDS = {
    "folder": (*BESIDE_IMAGES, *LINKS_AND_TILES, *PIXEL_OPTIONS),
    "list": ("root", *LINKS_AND_TILES, *PIXEL_OPTIONS),
    "parquet": ("image", "label", *IN_COLUMNS, *PIXEL_OPTIONS),
    "hf": ("split", "image", "label", "revision", "streaming", "shuffle_buffer", "follow_links", *IN_COLUMNS, *PIXEL_OPTIONS),
    "wds": ("image", "label", *BESIDE_IMAGES, "captions", *PIXEL_OPTIONS),
    "scenes": ("size", "count", "seed", "split"),
}


def open_source(text: str, num_channels: int = 3, auto_scale: Scale | None = None) -> ImageSource | ImageStream:
    """Open the source that `text` names; its images have `num_channels`. auto_scale: what `?scale=auto` stands for, by default what is
    usual among this source's own images; for images that are judged it is the scale of those that were learnt from.

    `folder:PATH` or a plain path; `list:FILE.txt`; `parquet:GLOB`; `hf:NAME[:CONFIG]`; `wds:GLOB`; `scenes`. See docs/data.md.

    Raises:
        UserError: unknown kind or option, nothing found, a column that is not there.
    """
    kind, where, options = parse_source(text)
    if num_channels < 1 or (kind == "scenes" and num_channels != 3):
        raise UserError(f"dataset {text!r}: num_channels={num_channels} is not possible; use 3, or for files 1 and more")
    pixel_options, options = take_pixel_options(text, options)
    if pixel_options.bands is not None and len(pixel_options.bands) != num_channels:
        raise UserError(
            f"dataset {text!r}: {len(pixel_options.bands)} bands are chosen, and num_channels is {num_channels}; make them equal"
        )
    source = _open(kind, where, pixel_options.file_channels(num_channels), options)
    source.pixel_options = pixel_options
    source.class_names = source.class_names and [printable(name) for name in source.class_names]
    source.description = printable(source.description)
    if pixel_options.scale is not None and pixel_options.scale.kind == "auto":
        _set_automatic_scale(text, source, auto_scale)
    return source


def _set_automatic_scale(text: str, source: ImageSource | ImageStream, given: Scale | None) -> None:
    """Values in place of `scale=auto`; the description says which."""
    from vision_core.images.ranges import automatic_scale

    if given is not None and given.kind == "values":
        scale, origin = given, "as the images that were learnt from"
    elif isinstance(source, ImageStream):
        raise UserError(f"dataset {text!r}: scale=auto needs samples, which a stream has not; give scale=LOW,HIGH")
    else:
        scale, count = automatic_scale(source, text)
        origin = f"from {count:,} images"
    source.pixel_options = replace(source.pixel_options, scale=scale)
    source.description += f", scale=auto: {scale.low:,.6g} to {scale.high:,.6g} {origin}"


def _open(kind: str, where: str, num_channels: int, options: dict[str, str]) -> ImageSource | ImageStream:
    if kind == "scenes":
        from vision_core.images.scenes_source import open_scenes

        return open_scenes(options)
    if kind == "folder":
        from vision_core.images.folder_source import open_folder

        return open_folder(Path(where), num_channels, **options)
    if kind == "list":
        from vision_core.images.folder_source import open_list

        return open_list(Path(where), num_channels, **options)
    if kind == "parquet":
        from vision_core.images.parquet_source import open_parquet

        return open_parquet(where, num_channels, **options)
    if kind == "wds":
        from vision_core.images.tar_source import open_shards

        return open_shards(where, num_channels, **options)
    from vision_core.images.hub_source import open_hub

    return open_hub(where, num_channels, **options)


def parse_source(text: str) -> tuple[str, str, dict[str, str]]:
    """`kind:where?a=b` as (kind, where, options), all checked but `where`. A `?` without `name=` behind it belongs to a glob pattern."""
    head, tail = re.fullmatch(r"(.*?)(?:\?(\w+=[^?]*))?", text, re.DOTALL).groups(default="")
    kind, colon, where = head.partition(":")
    if head == "scenes":
        kind = "scenes"
    elif not colon or (kind not in KINDS and os.path.exists(head)):
        kind, where = "folder", head
    if kind not in KINDS:
        raise UserError(f"dataset {text!r}: unknown kind {kind!r}{_hint(kind, KINDS)}; known: {', '.join(KINDS)}")
    if "?" in where and kind not in ("parquet", "wds", "folder"):
        raise UserError(f"dataset {text!r}: an option is written name=value, several are joined by &")
    if not where and kind != "scenes":
        raise UserError(f"dataset {text!r} names no data; write {kind}:WHERE")
    return kind, where, _parse_options(text, kind, tail)


def _parse_options(text: str, kind: str, tail: str) -> dict[str, str]:
    options: dict[str, str] = {}
    for item in tail.split("&") if tail else []:
        key, equals, value = item.partition("=")
        if key not in KINDS[kind]:
            known = ", ".join(KINDS[kind]) or "none"
            raise UserError(f"dataset {text!r}: unknown option {key!r}{_hint(key, KINDS[kind])}; options of {kind}: {known}")
        if not value or key in options:
            problem = "is given twice" if key in options else "has no value"
            raise UserError(f"dataset {text!r}: option {key!r} {problem}; write {key}=VALUE once")
        options[key] = value
    return options


def _hint(word: str, known) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    return f", did you mean {near[0]!r}?" if near else ""
