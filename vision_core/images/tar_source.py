"""Webdataset shards: tar files of images, read by offset, never extracted."""

import glob
import tarfile
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from vision_core.errors import UserError
from vision_core.images.decode import UnreadableImage, decode_image
from vision_core.images.folder_source import EXTENSIONS
from vision_core.images.sources import ImageRecord, ImageSource

MAX_MEMBER_BYTES = 64 * 2**20
MAX_LABEL_BYTES = 64


class Member(NamedTuple):
    """Where an image's bytes lie."""

    shard: int
    key: str
    offset: int
    size: int


class TarSource(ImageSource):
    """The images of the uncompressed shards that `pattern` matches, in order of shard and place.

    The headers are read once; images are read by their offset, so the order is exact and a member's name is never a path. A member
    `key.cls` beside `key.jpg` is its label.
    """

    def __init__(self, pattern: str, num_channels: int = 3) -> None:
        self.shards = sorted(glob.glob(pattern, recursive=True))
        if not self.shards:
            raise UserError(f"no file matches wds:{pattern}; check the path and quote the pattern for the shell")
        self.num_channels = num_channels
        self.members: list[Member] = []
        labels: dict[tuple[int, str], int] = {}
        for number, path in enumerate(self.shards):
            self._index(number, path, labels)
        if not self.members:
            raise UserError(f"0 images in wds:{pattern} (looked for {', '.join(EXTENSIONS)})")
        found = [labels.get((member.shard, member.key)) for member in self.members]
        self.labels = None if None in found else found
        self.description = f"{len(self):,} images in {len(self.shards)} tar shards"

    def _index(self, number: int, path: str, labels: dict[tuple[int, str], int]) -> None:
        try:
            with tarfile.open(path, mode="r:") as tar:
                for info in tar:
                    key, extension = _split_name(info.name)
                    if not info.isreg():
                        continue
                    if extension in EXTENSIONS:
                        self.members.append(Member(number, key, info.offset_data, info.size))
                    elif extension == ".cls" and info.size <= MAX_LABEL_BYTES:
                        text = tar.extractfile(info).read().decode(errors="replace").strip()
                        if text.isdigit():
                            labels[number, key] = int(text)
        except tarfile.TarError:
            raise UserError(f"{path} is no uncompressed tar file; wds: reads plain .tar (gunzip it first)") from None

    def __len__(self) -> int:
        return len(self.members)

    def __getitem__(self, index: int) -> ImageRecord:
        member = self.members[index]
        if member.size > MAX_MEMBER_BYTES:
            raise UnreadableImage("file_too_large")
        with open(self.shards[member.shard], "rb") as file:
            file.seek(member.offset)
            data = file.read(member.size)
        label = None if self.labels is None else self.labels[index]
        return ImageRecord(self.id_of(index), decode_image(data, self.num_channels), label)

    def id_of(self, index: int) -> str:
        member = self.members[index]
        return f"{Path(self.shards[member.shard]).name}:{member.key}"


def _split_name(name: str) -> tuple[str, str]:
    """Webdataset's rule: the key ends at the first dot of the last part."""
    folder, _, last = name.rpartition("/")
    stem, _, extension = last.partition(".")
    return f"{folder}/{stem}" if folder else stem, PurePosixPath("x." + extension).suffix.lower()
