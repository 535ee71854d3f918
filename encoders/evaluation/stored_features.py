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

KEPT, CONTENTS = "kept", "contents"
CHECKS = " crc32"  # behind a tensor's name: of each row's bytes, for those who read single rows
OF_ITSELF = (KEPT, CONTENTS)
SHARD_NAME = re.compile(r"([0-9]{9})-([0-9]{9})\.safetensors")
AGAIN = "start the evaluation again, which computes it anew"


@dataclass
class Shard:
    """The images at `start` to `stop` of those that were asked for: what is in memory of a file
    that was verified.

    Attributes:
        kept: `[n]` indices in their source of those that could be read. reasons: index -> why the
            others could not.
        contents: `[n, 2]`, see `content_hash`. checks: of every tensor `[n]`. layouts: dtype, shape
            of a row, offset.
    """

    path: Path
    start: int
    stop: int
    kept: Tensor
    contents: Tensor
    reasons: dict[int, str]
    checks: dict[str, Tensor]
    layouts: dict[str, tuple[torch.dtype, tuple[int, ...], int]]

    def row(self, name: str, number: int) -> Tensor:
        """One row of a tensor, read from the disk and verified."""
        dtype, shape, offset = self.layouts[name]
        size = torch.Size(shape).numel() * dtype.itemsize
        with _told(self.path):
            with open(self.path, "rb", buffering=0) as file:
                content = bytearray(os.pread(file.fileno(), size, offset + number * size))
            if len(content) != size or zlib.crc32(content) != int(self.checks[name][number]):
                raise DamagedTensors("other content than was written")
        return torch.frombuffer(content, dtype=dtype).reshape(shape)


def shard_path(folder: Path, start: int, stop: int) -> Path:
    """Where the features of the images at `start` to `stop` lie."""
    return folder / f"{start:09d}-{stop:09d}.safetensors"


def write_shard(path: Path, key: str, features: Mapping[str, Tensor], reasons: Mapping[int, str]) -> None:
    """features: `[n, ...]` each, `kept` and `contents` among them. Raises OSError.

    Where another run has written the same shard meanwhile, that one stays: somebody may be reading
    it row by row.
    """
    checks = {name + CHECKS: _checks_of(value) for name, value in features.items() if name not in OF_ITSELF}
    metadata = {"key": key, "stretch": path.stem, "unreadable": json.dumps(list(reasons.items()))}
    write_sealed(path, {**features, **checks}, metadata, path.parent, keep_first=True)


def read_shard(path: Path, key: str) -> Shard:
    """A verified shard. Raises OSError, NotSealed or DamagedTensors, this also where another's lies
    in its place."""
    sealed = _read(path)
    named = SHARD_NAME.fullmatch(path.name)
    if named is None or sealed.metadata.get("key") != key:
        raise DamagedTensors("features of something else")
    tensors = sealed.tensors
    names = [name for name in tensors if name not in OF_ITSELF and not name.endswith(CHECKS)]
    return Shard(
        path,
        start=int(named[1]),
        stop=int(named[2]),
        kept=tensors[KEPT],
        contents=tensors[CONTENTS],
        reasons=dict(json.loads(sealed.metadata["unreadable"])),
        checks={name: tensors[name + CHECKS] for name in names},
        layouts={
            name: (tensors[name].dtype, tuple(tensors[name].shape[1:]), sealed.offsets[name])
            for name in names
        },
    )


class StoredFeatures:
    """Features that are whole, read from disk as they are asked for.

    Every read is verified, and raises UserError where the file is not what was written.

    Attributes:
        names: of the tensors. kept: `[n]` the indices of the images in their source; unreadable
            ones are left out.
        unreadable: how many were. reasons: index -> reason of those. contents: `[n, 2]` the hashes
            of the images (`content_hash`).
    """

    def __init__(self, shards: Sequence[Shard]) -> None:
        self.shards = shards
        self._full = [shard for shard in shards if len(shard.kept)]
        self.names = sorted(self._full[0].layouts) if self._full else []
        self.kept = torch.cat([torch.empty(0, dtype=torch.long), *(shard.kept for shard in self._full)])
        self.contents = torch.cat(
            [torch.empty(0, 2, dtype=torch.long), *(shard.contents for shard in self._full)]
        )
        self.reasons = {index: reason for shard in shards for index, reason in shard.reasons.items()}
        self.unreadable = len(self.reasons)

    def load(self, name: str) -> Tensor:
        """The whole tensor `[n, ...]` in memory."""
        return self.load_all([name])[name]

    def load_all(self, names: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Several tensors, by default all, for which every file is read once."""
        names = self.names if names is None else names
        parts: dict[str, list[Tensor]] = {name: [] for name in names}
        for shard in self._full:
            with _told(shard.path):
                tensors = _read(shard.path).tensors
                for name in names:
                    parts[name].append(tensors[name])
        return {name: torch.cat(each) for name, each in parts.items()}

    def rows(self, name: str) -> StoredRows:
        """The tensor row by row, for what does not fit into memory."""
        return StoredRows(name, [(shard, row) for shard in self._full for row in range(len(shard.kept))])


class StoredRows:
    """`rows[i]` reads one image's tensor from disk."""

    def __init__(self, name: str, places: list[tuple[Shard, int]]) -> None:
        self.name, self.places = name, places
        first, _ = places[0]
        self.shape = (len(places), *first.layouts[name][1])

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Tensor:
        shard, row = self.places[index]
        return shard.row(self.name, row)

    def only(self, indices: list[int]) -> StoredRows:
        """Some of the rows."""
        return StoredRows(self.name, [self.places[index] for index in indices])


def _read(path: Path) -> Sealed:
    """With the check that a file was not given another's name."""
    sealed = read_sealed(path)
    if sealed.metadata.get("stretch") != path.stem:
        raise DamagedTensors("features of other images")
    return sealed


def _checks_of(rows: Tensor) -> Tensor:
    """`[n]` numbers. A CRC-32 takes a microsecond; it finds every damage within 32 bits, and of
    others all but one in 4e9."""
    as_bytes = rows.reshape(len(rows), -1).contiguous().view(torch.uint8).numpy()
    return torch.tensor([zlib.crc32(row) for row in as_bytes], dtype=torch.int64)


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Inside, what is wrong with a file becomes a UserError that names it."""
    try:
        yield
    except (OSError, NotSealed, DamagedTensors) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path} does not hold the features that were written: {reason}; {AGAIN}") from None
