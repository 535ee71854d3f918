"""Reads archives of arrays that NumPy saved: `.npz`."""

import io
import math
import zipfile
from typing import BinaryIO

from vision_core.images import arrays
from vision_core.images.pixel_options import PixelOptions
from vision_core.images.stored import Stored, part_to_read
from vision_core.images.unreadable import check_values

# of a complex128, the largest type of numbers; and what stands before the numbers
MOST_BYTES_A_VALUE, MOST_BYTES_OF_HEADER = 16, 2**16


def count_parts(file: BinaryIO, num_channels: int) -> int:
    """How many arrays the archive holds, each of them an image."""
    with zipfile.ZipFile(file) as archive:
        return len(_arrays(archive))


def read(data: bytes, num_channels: int, options: PixelOptions, part: int | None) -> Stored:
    """One array, in the order in which they were saved; see `arrays.read`."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = _arrays(archive)
        member = members[part_to_read(part, len(members))]
        check_values(math.ceil((member.file_size - MOST_BYTES_OF_HEADER) / MOST_BYTES_A_VALUE), options.max_pixels)
        with archive.open(member) as file:
            array = file.read(member.file_size)
    return arrays.read(array, num_channels, options, None)


def _arrays(archive: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    return [member for member in archive.infolist() if member.filename.endswith(".npy")]
