"""Features of many images on disk: shards side by side in a folder, each a sealed file for a
stretch of the images."""

from __future__ import annotations

import json
import os
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vision_core.errors import UserError
from vision_core.files.sealed_tensors import DamagedTensors, NotSealed, Sealed, read_sealed, write_sealed
from vision_core.images.source import ImageSource, UnreadableSample

KEPT = "kept"
CONTENTS = "contents"
NOT_FEATURES = (KEPT, CONTENTS)  # tensors of a shard that say which images it holds
CHECKS = " crc32"  # behind a tensor's name: of each row's bytes, for those who read single rows
SHARD_NAME = re.compile(r"([0-9]{9})-([0-9]{9})\.safetensors")
START_AGAIN = "start the evaluation again, which computes it anew"

Layout = tuple[torch.dtype, tuple[int, ...], int]  # of a row: dtype, shape, and where the first is


@dataclass
class Shard:
    """A verified file of the images at `start` to `stop` of those that were asked for, without its
    features.

    Attributes:
        kept: `[n]` indices in their source of the images that could be read.
        contents: `[n, 2]`, see `content_hash`.
        reasons: index -> why the image could not be read.
        checks: of every tensor the CRC-32 of its rows, `[n]`.
        layouts: of every tensor the dtype, the shape of a row and the offset in the file.
    """

    path: Path
    start: int
    stop: int
    kept: Tensor
    contents: Tensor
    reasons: dict[int, str]
    checks: dict[str, Tensor]
    layouts: dict[str, Layout]

    def row(self, name: str, number: int) -> Tensor:
        """One row of a tensor, read from the disk and verified."""
        dtype, shape, offset = self.layouts[name]
        size = torch.Size(shape).numel() * dtype.itemsize
        with _damage_as_user_error(self.path):
            with open(self.path, "rb", buffering=0) as file:
                content = bytearray(os.pread(file.fileno(), size, offset + number * size))
            if len(content) != size or zlib.crc32(content) != int(self.checks[name][number]):
                raise DamagedTensors("other content than was written")
        return torch.frombuffer(content, dtype=dtype).reshape(shape)


def shard_path(folder: Path, start: int, stop: int) -> Path:
    """The file for the features of the images at `start` to `stop`."""
    return folder / f"{start:09d}-{stop:09d}.safetensors"


def write_shard(path: Path, key: str, features: Mapping[str, Tensor], reasons: Mapping[int, str]) -> None:
    """Write a shard of `features`, `[n, ...]` each, with `kept` and `contents` among them. Raises
    OSError.

    Where another run has written the same shard meanwhile, that one stays: somebody may be reading
    it row by row.
    """
    tensors = dict(features)
    for name, value in features.items():
        if name not in NOT_FEATURES:
            tensors[name + CHECKS] = _checks_of(value)
    metadata = {"key": key, "stretch": path.stem, "unreadable": json.dumps(list(reasons.items()))}
    write_sealed(path, tensors, metadata, path.parent, keep_first=True)


def read_shard(path: Path, key: str) -> Shard:
    """A verified shard of the features that `key` names.

    Raises OSError, NotSealed, or DamagedTensors, which is also raised for a file of other features.
    """
    sealed = _read(path)
    positions = SHARD_NAME.fullmatch(path.name)
    if positions is None or sealed.metadata.get("key") != key:
        raise DamagedTensors("features of something else")
    names = [name for name in sealed.tensors if name not in NOT_FEATURES and not name.endswith(CHECKS)]
    return Shard(
        path,
        start=int(positions[1]),
        stop=int(positions[2]),
        kept=sealed.tensors[KEPT],
        contents=sealed.tensors[CONTENTS],
        reasons=dict(json.loads(sealed.metadata["unreadable"])),
        checks={name: sealed.tensors[name + CHECKS] for name in names},
        layouts={name: _layout(sealed, name) for name in names},
    )


def _layout(sealed: Sealed, name: str) -> Layout:
    tensor = sealed.tensors[name]
    return tensor.dtype, tuple(tensor.shape[1:]), sealed.offsets[name]


class StoredFeatures:
    """The features of all images that were asked for, read from disk as they are asked for.

    Every read is verified, and raises UserError where the file is not what was written.

    Attributes:
        names: of the tensors.
        kept: `[n]` the indices in their source of the images that could be read.
        contents: `[n, 2]` the hashes of these images (`content_hash`).
        reasons: index -> why an image could not be read.
        unreadable: how many images could not be read.
    """

    def __init__(self, shards: Sequence[Shard]) -> None:
        self.shards = shards
        self._full = [shard for shard in shards if len(shard.kept)]
        self.names = sorted(self._full[0].layouts) if self._full else []
        kept = [torch.empty(0, dtype=torch.long)]
        contents = [torch.empty(0, 2, dtype=torch.long)]
        self.reasons: dict[int, str] = {}
        for shard in shards:
            self.reasons |= shard.reasons
        for shard in self._full:
            kept.append(shard.kept)
            contents.append(shard.contents)
        self.kept = torch.cat(kept)
        self.contents = torch.cat(contents)
        self.unreadable = len(self.reasons)

    def unreadable_samples(self, source: ImageSource) -> list[UnreadableSample]:
        """The images of `source` that could not be read, by their names, and why."""
        return [UnreadableSample(source.id_of(index), reason) for index, reason in self.reasons.items()]

    def load(self, name: str) -> Tensor:
        """A tensor `[n, ...]` in memory."""
        return self.load_all([name])[name]

    def load_all(self, names: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Several tensors, by default all, for which every file is read once."""
        names = self.names if names is None else names
        parts: dict[str, list[Tensor]] = {name: [] for name in names}
        for shard in self._full:
            with _damage_as_user_error(shard.path):
                tensors = _read(shard.path).tensors
                for name in names:
                    parts[name].append(tensors[name])
        return {name: torch.cat(each) for name, each in parts.items()}

    def rows(self, name: str) -> StoredRows:
        """A tensor row by row, for what does not fit into memory."""
        places = []
        for shard in self._full:
            places += [(shard, row) for row in range(len(shard.kept))]
        return StoredRows(name, places)


class StoredRows:
    """The rows of a tensor: `rows[index]` reads one image's from disk."""

    def __init__(self, name: str, places: list[tuple[Shard, int]]) -> None:
        self.name = name
        self.places = places
        first_shard, _ = places[0]
        _, shape, _ = first_shard.layouts[name]
        self.shape = (len(places), *shape)

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Tensor:
        shard, row = self.places[index]
        return shard.row(self.name, row)

    def only(self, indices: list[int]) -> StoredRows:
        """Some of the rows."""
        return StoredRows(self.name, [self.places[index] for index in indices])


def _read(path: Path) -> Sealed:
    """The content of a shard, with the check that the file was not given another's name."""
    sealed = read_sealed(path)
    if sealed.metadata.get("stretch") != path.stem:
        raise DamagedTensors("features of other images")
    return sealed


def _checks_of(rows: Tensor) -> Tensor:
    """A CRC-32 of each row, `[n]`.

    It takes a microsecond, finds every damage within 32 bits, and of other damage all but one case
    in 4e9.
    """
    as_bytes = rows.reshape(len(rows), -1).contiguous().view(torch.uint8).numpy()
    return torch.tensor([zlib.crc32(row) for row in as_bytes], dtype=torch.int64)


@contextmanager
def _damage_as_user_error(path: Path) -> Iterator[None]:
    """Inside, what is wrong with a file becomes a UserError that names it."""
    try:
        yield
    except (OSError, NotSealed, DamagedTensors) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"{path} does not hold the features that were written: {reason}; {START_AGAIN}"
        ) from None
