"""One string names a data source: `kind:where?option=value&option=value`."""

import difflib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from vision_core.errors import UserError


@dataclass(frozen=True)
class ImageRecord:
    """An image `[C, H, W]` with its name and, where it is known, its label."""

    id: str
    image: Tensor
    label: int | None = None


@dataclass(frozen=True)
class UnreadableSample:
    """What a stream gives in place of an image that cannot be used."""

    id: str
    reason: str


class ImageSource(ABC):
    """Images with an index: order and resume are exact.

    Attributes:
        labels: one per image, known without decoding, or None.
        class_names: the names of the labels, or None.
        description: one line for people.
    """

    labels: list[int] | None = None
    class_names: list[str] | None = None
    description: str = ""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> ImageRecord:
        """Image number `index`; raises `UnreadableImage`."""

    @abstractmethod
    def id_of(self, index: int) -> str:
        """The name of image number `index`, without decoding it."""


class ImageStream(ABC):
    """Images without an index: every reader gets its share; the order depends on how many readers there are."""

    description: str = ""

    @abstractmethod
    def records(self, rank: int, world_size: int, epoch: int) -> Iterator[ImageRecord | UnreadableSample]:
        """One pass over this process's share (in a data worker: that worker's), shuffled by `epoch`."""


KINDS = {
    "folder": (),
    "list": ("root",),
    "parquet": ("image", "label"),
    "hf": ("split", "image", "label", "revision", "streaming", "shuffle_buffer"),
    "wds": (),
    "scenes": ("size", "count", "seed", "split"),
}


def open_source(text: str, num_channels: int = 3) -> ImageSource | ImageStream:
    """Open the source that `text` names.

    `folder:PATH` or a plain path; `list:FILE.txt`; `parquet:GLOB`; `hf:NAME[:CONFIG]`; `wds:GLOB`; `scenes`. See docs/data.md.

    Raises:
        UserError: unknown kind or option, nothing found, a column that is not there.
    """
    kind, where, options = parse_source(text)
    if kind == "scenes":
        from vision_core.images.scenes_source import open_scenes

        return open_scenes(options)
    if kind == "folder":
        from vision_core.images.folder_source import FolderSource

        return FolderSource(Path(where), num_channels)
    if kind == "list":
        from vision_core.images.folder_source import open_list

        return open_list(Path(where), num_channels, **options)
    if kind == "parquet":
        from vision_core.images.parquet_source import ParquetSource

        return ParquetSource(where, num_channels, **options)
    if kind == "wds":
        from vision_core.images.tar_source import TarSource

        return TarSource(where, num_channels)
    from vision_core.images.hub_source import open_hub

    return open_hub(where, num_channels, **options)


def parse_source(text: str) -> tuple[str, str, dict[str, str]]:
    """`kind:where?a=b` as (kind, where, options), all checked but `where`."""
    head, _, tail = text.partition("?")
    kind, colon, where = head.partition(":")
    if head == "scenes":
        kind, where = "scenes", ""
    elif not colon or (kind not in KINDS and Path(head).exists()):
        kind, where = "folder", head
    if kind not in KINDS:
        near = difflib.get_close_matches(kind, KINDS, n=1)
        raise UserError(f"dataset {text!r}: unknown kind {kind!r}{_hint(near)}; known: {', '.join(KINDS)}")
    options = dict(item.partition("=")[::2] for item in tail.split("&") if item)
    for key in options:
        if key not in KINDS[kind]:
            near = difflib.get_close_matches(key, KINDS[kind], n=1)
            known = ", ".join(KINDS[kind]) or "none"
            raise UserError(f"dataset {text!r}: unknown option {key!r}{_hint(near)}; options of {kind}: {known}")
    return kind, where, options


def _hint(near: list[str]) -> str:
    return f", did you mean {near[0]!r}?" if near else ""
