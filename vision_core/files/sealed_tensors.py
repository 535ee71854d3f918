"""Keep tensors in a safetensors file with a digest of its content, which every read compares.

A flipped bit in a file of features is a feature too, and nothing else would notice it. The digest
is SHA-256, as in the manifest of a checkpoint: processors compute it in hardware, so that it costs
less than what is done with the tensors.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from vision_core.files.files_aside import write_whole

DIGEST = "sha256"
HEADER_BYTES = 1024  # what names, shapes and digest take beside the tensors, at most, as long as they are few
BLOCK_BYTES = 4096  # in which file systems count


class NotSealed(ValueError):
    """A file that has no digest: something else, or of an earlier version."""


class DamagedTensors(ValueError):
    """A file that is not as it was written. The message is the reason, in a few words."""


@dataclass
class Sealed:
    """tensors: by name. metadata: the texts that were sealed with them. offsets: where in the file
    a tensor's bytes begin."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    offsets: dict[str, int]


def write_sealed(
    path: Path,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    aside_in: Path,
    keep_first: bool = False,
) -> None:
    """Write tensors (on the CPU) and texts with their digest, whole or not at all. Raises OSError.

    aside_in, keep_first: see `write_whole`.
    """
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    content = save(tensors, {**metadata, DIGEST: _digest(tensors, metadata)})
    write_whole(path, content, aside_in, keep_first)


def read_sealed(path: Path) -> Sealed:
    """What `write_sealed` wrote. Raises FileNotFoundError and other OSErrors, NotSealed, or
    DamagedTensors."""
    content = _read_file(path)
    header = _header(content)
    metadata = header.pop("__metadata__", {})
    if DIGEST not in metadata:
        raise NotSealed("it has no digest")
    expected = metadata.pop(DIGEST)
    try:
        tensors = load(content)
    except (SafetensorError, ValueError, KeyError, AssertionError) as error:
        raise DamagedTensors(f"no safetensors file: {error}") from None
    if _digest(tensors, metadata) != expected:
        raise DamagedTensors("other content than was written")
    start = 8 + int.from_bytes(content[:8], "little")
    offsets = {name: start + entry["data_offsets"][0] for name, entry in header.items()}
    return Sealed(tensors, metadata, offsets)


def sealed_bytes(tensor_bytes: int) -> int:
    """What a file with so many bytes of tensors takes of a disk, rounded up."""
    return -(-(tensor_bytes + HEADER_BYTES) // BLOCK_BYTES) * BLOCK_BYTES


def remove_damaged(path: Path, status: os.stat_result) -> None:
    """Remove a file that did not verify, unless another process has replaced it since its `status`
    was taken.

    What cannot be removed stays, and is replaced if it can be.
    """
    with contextlib.suppress(OSError):
        now = path.lstat()
        if (now.st_ino, now.st_mtime_ns) != (status.st_ino, status.st_mtime_ns):
            return
        if stat.S_ISDIR(now.st_mode):
            shutil.rmtree(path)
        else:
            path.unlink()


def _read_file(path: Path) -> bytes:
    """At once, and never by a map: to read behind the end of a file that was cut meanwhile would
    end the process."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # of a pipe, nobody waits for a writer
    with open(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise DamagedTensors("no regular file")
        return file.read()


def _header(content: bytes) -> dict[str, Any]:
    """The JSON in front of the tensors."""
    size = int.from_bytes(content[:8], "little")
    try:
        header = json.loads(content[8 : 8 + size])
    except (ValueError, RecursionError):
        header = None
    if len(content) < 8 + size or not isinstance(header, dict):
        raise DamagedTensors(f"{len(content):,} bytes, of which the first are no header of safetensors")
    return header


def _digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """Of texts, names, dtypes, shapes and bytes."""
    digest = hashlib.sha256(json.dumps(dict(metadata), sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
