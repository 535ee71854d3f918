"""Files that hold several images, or a compressed one: counts their images, and keeps their content,
which is read once for many images."""

from __future__ import annotations

import gzip
import io
import os
import zlib
from collections import OrderedDict
from collections.abc import Sequence
from typing import BinaryIO

from tqdm import tqdm

from vision_core.files.regular_files import open_regular_file
from vision_core.images.formats import nifti
from vision_core.images.formats.by_content import (
    BYTES_THAT_TELL,
    COMPRESSED_ENDINGS,
    Format,
    ending_of,
    format_of,
)
from vision_core.images.formats.quiet import quiet_libraries
from vision_core.processes.distributed import rank
from vision_core.unreadable import UnreadableImage, check_inflation

GZIP_MAGIC = b"\x1f\x8b"
MAX_VOLUME_BYTES = 2 * 2**30
# how much content a process keeps; every data worker is one
CACHE_BYTES = 256 * 2**20
# behind the header of every format that may be compressed
COMPRESSED_HEADER_BYTES = 2**20
FILES_WITHOUT_A_BAR = 500
PIECE_BYTES = 16 * 2**20


def count_images(paths: Sequence[str], num_channels: int, roots: Sequence[str]) -> list[int | None]:
    """The number of images in every file, from its header; None where the header cannot be read,
    whose reason is told when the image is."""
    quiet = len(paths) < FILES_WITHOUT_A_BAR or rank() != 0
    shown = tqdm(paths, "reading headers", unit="files", leave=False, disable=quiet)
    return [_count(path, num_channels, roots) for path in shown]


def _count(path: str, num_channels: int, roots: Sequence[str]) -> int | None:
    try:
        with quiet_libraries(), open_regular_file(path, *roots) as file:
            return _count_in(file, path, num_channels, roots)
    except Exception:  # a damaged header; the image's own reason is told where it is read
        return None


def _count_in(file: BinaryIO, path: str, num_channels: int, roots: Sequence[str]) -> int:
    if file.read(2) == GZIP_MAGIC:
        file.seek(0)
        file = io.BytesIO(gzip.GzipFile(fileobj=file).read(COMPRESSED_HEADER_BYTES))
    file.seek(0)
    head = file.read(BYTES_THAT_TELL)
    format = format_of(head)
    count = getattr(format.reader, "count_parts", None) if format else None
    if count is None:
        return 1
    if format.name == "FITS" and ending_of(path) in COMPRESSED_ENDINGS:
        file = io.BytesIO(volume_bytes(path, *roots))  # headers stand between the images
    file.seek(0)
    return count(file, num_channels)


def volume_bytes(path: str, *roots: str) -> bytes:
    """The content of a file of at most 2 GiB, gunzipped where it is compressed.

    The last files are kept, up to 256 MiB of them and at least one, so that the next image of a
    file costs no reading.

    Raises:
        UnreadableImage: as for `regular_files.read_regular_file`, and truncated or corrupt.
    """
    with open_regular_file(path, *roots) as file:
        status = os.fstat(file.fileno())
        key = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
        content = _cache.get(key)
        if content is None:
            if status.st_size > MAX_VOLUME_BYTES:
                raise UnreadableImage("file_too_large")
            content = _read(file)
            _cache_content(key, content)
        _cache.move_to_end(key)
        return content


def inflated(data: bytes) -> bytes:
    """The data, gunzipped where it is compressed, to at most 2 GiB. Raises UnreadableImage."""
    if data.startswith(GZIP_MAGIC):
        return _read(io.BytesIO(data))
    return data


_cache: OrderedDict[tuple[int, ...], bytes] = OrderedDict()


def _cache_content(key: tuple[int, ...], content: bytes) -> None:
    """Keep the content, and let the oldest go where there is too much."""
    _cache[key] = content
    while len(_cache) > 1 and sum(map(len, _cache.values())) > CACHE_BYTES:
        _cache.popitem(last=False)


def _read(file: BinaryIO) -> bytes:
    compressed = file.read(2) == GZIP_MAGIC
    file.seek(0)
    try:
        content = _gunzip(file) if compressed else file.read(MAX_VOLUME_BYTES + 1)
    except EOFError:
        raise UnreadableImage("truncated") from None
    except (OSError, zlib.error):
        raise UnreadableImage("corrupt" if compressed else "cannot_be_opened") from None
    if len(content) > MAX_VOLUME_BYTES:
        raise UnreadableImage("file_too_large")
    return content


def _gunzip(file: BinaryIO) -> bytes:
    """The content that its own header promises, at most 2 GiB and a byte. Content that does not begin
    as an image is not inflated."""
    packed = file.seek(0, os.SEEK_END)
    file.seek(0)
    with gzip.GzipFile(fileobj=file) as opened:
        pieces = [opened.read(BYTES_THAT_TELL)]
        format = format_of(pieces[0])
        if format is None:
            raise UnreadableImage("not_an_image")
        missing = _bytes_to_read(format, pieces[0], packed) - len(pieces[0])
        while missing > 0:
            piece = opened.read(min(missing, PIECE_BYTES))
            if not piece:
                break
            pieces.append(piece)
            missing -= len(piece)
        opened.read(1)  # behind the last byte the checksum is compared
    content = b"".join(pieces)
    check_inflation(len(content), packed)
    return content


def _bytes_to_read(format: Format, head: bytes, packed: int) -> int:
    """How much to inflate of content that begins like this. Raises UnreadableImage where it promises
    more than its `packed` bytes can hold."""
    promised = nifti.promised_bytes(head) if format.reader is nifti else None
    if promised is None:
        return MAX_VOLUME_BYTES + 1
    check_inflation(promised, packed)
    return min(promised, MAX_VOLUME_BYTES + 1)
