"""The table of formats: which module reads a file, by the first bytes of its content, and which
files of a folder are images."""

from itertools import chain
from types import ModuleType
from typing import Any, NamedTuple

from vision_core.images.formats import arrays, dicom, fits, heif, nifti, pictures, tiff
from vision_core.images.formats.endings import ENDINGS_OF_FORMATS, SLIDE_ENDINGS
from vision_core.images.formats.optional_packages import ASTROPY, NIBABEL, PILLOW_HEIF, PYDICOM, Package
from vision_core.unreadable import UnreadableImage

# every format can be told by these first bytes
BYTES_THAT_TELL = 352
READ_AS_TILES = "whole slides are read by ?tile=256"


class Format(NamedTuple):
    """A format of images.

    Attributes:
        name: for people.
        endings: how the names of its files end, in lower case.
        offset: the place in the content at which one of `magic` is found.
        magic: the bytes there.
        reader: a module as vision_core/images/formats/__init__.py describes it.
        package: what its files need besides the base dependencies. Without it they are left out of
            folders, which is said.
    """

    name: str
    endings: tuple[str, ...]
    offset: int
    magic: tuple[bytes, ...]
    reader: ModuleType
    package: Package | None = None

    @property
    def is_readable(self) -> bool:
        return self.package is None or self.package.is_installed


def _format(name: str, *rest: Any) -> Format:
    return Format(name, ENDINGS_OF_FORMATS.get(name, ()), *rest)


DICOM = _format("DICOM", 128, (b"DICM",), dicom, PYDICOM)
FORMATS = (
    _format("JPEG", 0, (b"\xff\xd8\xff",), pictures),
    _format("PNG", 0, (b"\x89PNG\r\n\x1a\n",), pictures),
    _format("WebP", 0, (b"RIFF",), pictures),
    _format("GIF", 0, (b"GIF8",), pictures),
    _format("BMP", 0, (b"BM",), pictures),
    _format("TIFF", 0, tiff.MAGIC, tiff),
    _format("NumPy array", 0, (arrays.NPY_MAGIC,), arrays),
    _format("NumPy archive", 0, (arrays.ZIP_MAGIC,), arrays),
    DICOM,
    _format("NIfTI", 344, (b"n+1\0",), nifti, NIBABEL),
    _format("NIfTI-2", 4, (b"n+2\0\r\n\x1a\n",), nifti, NIBABEL),
    _format("FITS", 0, (b"SIMPLE  =",), fits, ASTROPY),
    _format("AVIF", 4, heif.AVIF_BRANDS, heif, None if heif.pillow_reads_avif() else PILLOW_HEIF),
    _format("HEIC", 4, heif.HEIF_BRANDS, heif, PILLOW_HEIF),
)
ALL_ENDINGS = tuple(chain.from_iterable(format.endings for format in FORMATS))
# those that are read with the packages that are installed
ENDINGS = tuple(chain.from_iterable(format.endings for format in FORMATS if format.is_readable))
COMPRESSED_ENDINGS = tuple(ending for ending in ALL_ENDINGS if ending.endswith(".gz"))


def _endings_of_one() -> tuple[str, ...]:
    """The endings of files that hold one image, or what is taken for one (of an animation the first
    frame)."""
    found: list[str] = []
    for format in FORMATS:
        holds_one = not hasattr(format.reader, "count_parts")
        found += [ending for ending in format.endings if holds_one or ending == ".npy"]
    return tuple(found)


ENDINGS_OF_ONE = _endings_of_one()


def format_of(data: bytes) -> Format | None:
    """The format whose files begin as `data` does, or None."""
    # before the mark of DICOM a file may hold the header of a TIFF (PS3.10 7.1)
    if data.startswith(DICOM.magic, DICOM.offset):
        return DICOM
    return next((format for format in FORMATS if data.startswith(format.magic, format.offset)), None)


def reader_of(data: bytes) -> ModuleType:
    """The module that reads `data`. Raises UnreadableImage."""
    format = format_of(data)
    if format is None:
        raise UnreadableImage("not_an_image")
    return format.reader


def begins_like_an_image(head: bytes) -> bool:
    """Whether the first `BYTES_THAT_TELL` bytes of a file are those of an image that can be read;
    for files whose names say nothing."""
    format = format_of(head)
    if format is None or not format.is_readable:
        return False
    if format.name == "BMP":
        return head[6:10] == b"\0\0\0\0"  # two letters say too little; these four bytes are reserved
    if format.name == "WebP":
        return head[8:12] == b"WEBP"
    return format.name != "NumPy archive"  # a zip file may be anything


def ending_of(name: str) -> str:
    """The ending of a file's name in lower case, such as `.jpg` and `.nii.gz`; empty where there is
    none.

    Digits alone do not count as an ending: DICOM files are often named by numbers such as
    `1.2.840.113619.2.55.3`.
    """
    stem, dot, last = name.lower().rpartition(".")
    if not dot or not stem or not last or last.isdigit():
        return ""
    two = f".{stem.rpartition('.')[2]}.{last}"
    return two if two in COMPRESSED_ENDINGS else f".{last}"


def why_left_out(ending: str) -> str:
    """What it takes to read files of this ending; empty for files that are not images."""
    if ending in SLIDE_ENDINGS:
        return READ_AS_TILES
    for format in FORMATS:
        if ending in format.endings and format.package is not None:
            return f"needs {format.package.name}"
    return ""
