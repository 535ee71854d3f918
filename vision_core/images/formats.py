"""Which module reads a file, by the first bytes of its content."""

from types import ModuleType
from typing import NamedTuple

from vision_core.images import arrays, pictures, tiff
from vision_core.images.unreadable import UnreadableImage


class Format(NamedTuple):
    """A format of images.

    Attributes:
        name: for people.
        endings: of the names of its files, in lower case.
        offset, magic: what the content holds at this place; one of several.
        reader: a module with `read(data, num_channels, options, part) -> Stored`, and with `count_parts(data, num_channels) -> int` where
            a file may hold several images. Both raise UnreadableImage, and UserError where an optional package is missing, which they
            import themselves.
    """

    name: str
    endings: tuple[str, ...]
    offset: int
    magic: tuple[bytes, ...]
    reader: ModuleType


FORMATS = (
    Format("JPEG", (".jpg", ".jpeg"), 0, (b"\xff\xd8\xff",), pictures),
    Format("PNG", (".png",), 0, (b"\x89PNG\r\n\x1a\n",), pictures),
    Format("WebP", (".webp",), 0, (b"RIFF",), pictures),
    Format("GIF", (".gif",), 0, (b"GIF8",), pictures),
    Format("BMP", (".bmp",), 0, (b"BM",), pictures),
    Format("TIFF", (".tif", ".tiff"), 0, tiff.MAGIC, tiff),
    Format("NumPy array", (".npy",), 0, (arrays.NPY_MAGIC,), arrays),
    Format("NumPy archive", (".npz",), 0, (arrays.ZIP_MAGIC,), arrays),
)
ENDINGS = tuple(ending for format in FORMATS for ending in format.endings)


def format_of(data: bytes) -> Format | None:
    """The format as whose files `data` begins, or None."""
    return next((format for format in FORMATS if data.startswith(format.magic, format.offset)), None)


def reader_of(data: bytes) -> ModuleType:
    """The module that reads `data`. Raises UnreadableImage."""
    format = format_of(data)
    if format is None:
        raise UnreadableImage("not_an_image")
    return format.reader
