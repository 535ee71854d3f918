"""Webdataset shards: tar files of images, read by offset, never extracted."""

import tarfile
from pathlib import PurePosixPath
from typing import NamedTuple

from vision_core.errors import UserError
from vision_core.images.formats import ENDINGS
from vision_core.images.regular_files import files_fingerprint, files_matching, first_line, short_names
from vision_core.images.sources import EncodedImageSource
from vision_core.images.unreadable import UnreadableImage

MAX_MEMBER_BYTES = 64 * 2**20
MAX_MEMBERS = 1_000_000
MAX_LABEL_BYTES = 64


class Member(NamedTuple):
    """Where an image's bytes lie; `refused` is the reason why they are not read."""

    shard: int
    key: str
    offset: int
    size: int
    refused: str | None


class TarSource(EncodedImageSource):
    """The images of the uncompressed shards that `pattern` matches, in order of shard and place; an id is shard and key.

    The headers are read once; images are read by their offset, so the order is exact and a member's name is never a path. A member
    `key.cls` beside `key.jpg` is its label. Links, devices and members above 64 MiB are unreadable.
    """

    def __init__(self, pattern: str, num_channels: int = 3) -> None:
        self.shards = files_matching("wds", pattern, ".tar")
        self.num_channels = num_channels
        self._names = short_names(self.shards)
        extensions = ENDINGS
        self.members: list[Member] = []
        labels: dict[tuple[int, str], int] = {}
        for number, path in enumerate(self.shards):
            members, found = _index_shard(number, path, extensions)
            self.members += members
            labels.update({(number, key): label for key, label in found.items()})
        if not self.members:
            raise UserError(f"0 images in wds:{pattern} (looked for {', '.join(extensions)})")
        found = [labels.get((member.shard, member.key)) for member in self.members]
        self.labels = None if None in found else found
        classes = f", {len(set(self.labels))} classes" if self.labels else ""
        self.description = f"{len(self):,} images in {len(self.shards)} tar shards{classes}"

    @property
    def content_fingerprint(self) -> str:
        return files_fingerprint(self.shards)

    def __len__(self) -> int:
        return len(self.members)

    def id_of(self, index: int) -> str:
        member = self.members[index]
        return f"{self._names[member.shard]}:{member.key}"

    def read_bytes(self, index: int) -> bytes:
        member = self.members[index]
        if member.refused:
            raise UnreadableImage(member.refused)
        try:
            with open(self.shards[member.shard], "rb") as file:
                file.seek(member.offset)
                return file.read(member.size)
        except OSError as error:
            raise UnreadableImage("missing" if isinstance(error, FileNotFoundError) else "cannot_be_opened") from None


def _index_shard(shard: int, path: str, extensions: tuple[str, ...]) -> tuple[list[Member], dict[str, int]]:
    """The images of one shard and the labels of its keys."""
    members: dict[str, Member] = {}
    labels: dict[str, int] = {}
    try:
        with tarfile.open(path, mode="r:") as tar:
            for count, info in enumerate(tar):
                tar.members.clear()  # tarfile keeps every header it has read
                if count >= MAX_MEMBERS:
                    raise UserError(f"{path} has more than {MAX_MEMBERS:,} members; write smaller shards")
                key, extension = _split_name(info.name)
                if extension in extensions:
                    if key in members:
                        raise UserError(f"{path}: two images have the key {key!r}; give each image its own")
                    members[key] = Member(shard, key, info.offset_data, info.size, _refusal(info))
                elif extension == ".cls":
                    labels[key] = _label(tar, info, path)
            _check_end(tar, path)
    except (tarfile.TarError, OSError) as error:
        raise UserError(f"{path} cannot be read as a plain .tar file: {first_line(error)}; gunzip or rewrite it") from None
    return list(members.values()), labels


def _split_name(name: str) -> tuple[str, str]:
    """Webdataset's rule: the key ends at the first dot of the last part."""
    folder, _, last = name.rpartition("/")
    stem, _, extension = last.partition(".")
    return f"{folder}/{stem}" if folder else stem, PurePosixPath("x." + extension).suffix.lower()


def _refusal(info: tarfile.TarInfo) -> str | None:
    if not info.isreg() or info.issparse():
        return "not_a_regular_file"
    return "file_too_large" if info.size > MAX_MEMBER_BYTES else None


def _label(tar: tarfile.TarFile, info: tarfile.TarInfo, path: str) -> int:
    text = b""
    if info.isreg() and info.size <= MAX_LABEL_BYTES:
        text = tar.extractfile(info).read().strip()
    if not text.isdigit():
        raise UserError(f"{path}: the label {info.name!r} is no whole number; write one into each .cls, or leave all out")
    return int(text)


def _check_end(tar: tarfile.TarFile, path: str) -> None:
    """tarfile takes a damaged header for the end of the archive; the true end is a block of zeros."""
    tar.fileobj.seek(tar.offset)
    if tar.fileobj.read(tarfile.BLOCKSIZE).strip(b"\0"):
        raise UserError(f"{path} is damaged at byte {tar.offset:,}; copy or write the shard again")
