"""Which files are images: by the ending of the name, or by the first bytes where a name has no ending."""

from importlib.util import find_spec
from typing import NamedTuple

from PIL import features

PICTURE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
ARRAY_EXTENSIONS = (".npy", ".npz")
SLIDE_EXTENSIONS = (".svs", ".ndpi", ".mrxs", ".scn", ".vms", ".vmu", ".bif", ".svslide", ".czi")
SLIDE_HINT = "whole slides are read by ?tile=256"

# the first bytes that tell a format; DICOM and NIfTI have theirs behind the place of the header
BYTES_THAT_TELL = 352
DICOM_MAGIC, DICOM_OFFSET = b"DICM", 128
NIFTI_MAGIC, NIFTI_OFFSET = b"n+1\0", 344
FITS_MAGIC = b"SIMPLE  ="
GZIP_MAGIC = b"\x1f\x8b"
ZIP_MAGIC = b"PK\x03\x04"
ISO_MEDIA_OFFSET = 4
ISO_MEDIA_BRANDS = (b"ftypheic", b"ftypheix", b"ftyphevc", b"ftypheim", b"ftypmif1", b"ftypmsf1", b"ftypavif", b"ftypavis")
PICTURE_MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"\x93NUMPY")


class OptionalFormat(NamedTuple):
    """A format that needs a package: the name that is imported, the one that is installed, and the extra that brings it."""

    name: str
    extensions: tuple[str, ...]
    module: str
    package: str
    extra: str

    @property
    def is_installed(self) -> bool:
        return find_spec(self.module) is not None or (self.name == "AVIF" and bool(features.check("avif")))

    @property
    def cure(self) -> str:
        return f"{self.name} needs the package {self.package}; pip install 'vision-encoder-fusion[{self.extra}]'"


DICOM = OptionalFormat("DICOM", (".dcm", ".dicom", ".ima"), "pydicom", "pydicom", "scientific")
NIFTI = OptionalFormat("NIfTI", (".nii", ".nii.gz"), "nibabel", "nibabel", "scientific")
FITS = OptionalFormat("FITS", (".fits", ".fit", ".fts", ".fits.gz", ".fit.gz"), "astropy", "astropy", "scientific")
HEIF = OptionalFormat("HEIF", (".heic", ".heif", ".hif"), "pillow_heif", "pillow-heif", "heif")
AVIF = OptionalFormat("AVIF", (".avif",), "pillow_heif", "pillow-heif", "heif")
SLIDES = OptionalFormat("a whole slide", SLIDE_EXTENSIONS, "openslide", "openslide-python", "slides")
OPTIONAL_FORMATS = (DICOM, NIFTI, FITS, HEIF, AVIF)
# formats whose files may hold several images
SEVERAL_EXTENSIONS = (*DICOM.extensions, *NIFTI.extensions, *FITS.extensions, ".npz")


def image_extensions() -> tuple[str, ...]:
    """File name endings, in lower case, that the decoder may read with the packages that are installed."""
    optional = [ending for each in OPTIONAL_FORMATS if each.is_installed for ending in each.extensions]
    return (*PICTURE_EXTENSIONS, *ARRAY_EXTENSIONS, *optional)


def extension(name: str) -> str:
    """The ending of a file's name in lower case: `.jpg`, `.nii.gz`; empty where there is none.

    Digits alone are no ending, because DICOM files are often named by a number such as `1.2.840.113619.2.55.3`.
    """
    stem, dot, ending = name.lower().rpartition(".")
    if not dot or not stem or ending.isdigit() or not ending:
        return ""
    before = stem.rpartition(".")[2]
    return f".{before}.gz" if ending == "gz" and f".{before}.gz" in COMPRESSED_EXTENSIONS else f".{ending}"


COMPRESSED_EXTENSIONS = tuple(ending for each in OPTIONAL_FORMATS for ending in each.extensions if ending.endswith(".gz"))


def why_left_out(ending: str) -> str:
    """What is missing for files of this ending, or nothing where they are no images."""
    for each in OPTIONAL_FORMATS:
        if ending in each.extensions:
            return f"needs {each.package}"
    return SLIDE_HINT if ending in SLIDE_EXTENSIONS else ""


def starts_like_an_image(head: bytes) -> bool:
    """Whether the first `BYTES_THAT_TELL` bytes are those of an image; for files whose names say nothing."""
    if head.startswith(PICTURE_MAGIC) or head.startswith(FITS_MAGIC):
        return True
    if head.startswith(b"RIFF"):
        return head[8:12] == b"WEBP"
    if head.startswith(b"BM"):
        return head[6:10] == b"\0\0\0\0"  # the reserved field of a BMP: two letters alone say too little
    return is_dicom(head) or is_nifti(head) or is_iso_media(head)


def is_dicom(head: bytes) -> bool:
    return head[DICOM_OFFSET : DICOM_OFFSET + 4] == DICOM_MAGIC


def is_nifti(head: bytes) -> bool:
    return head[NIFTI_OFFSET : NIFTI_OFFSET + 4] == NIFTI_MAGIC or head[4:12] == b"n+2\0\r\n\x1a\n"


def is_iso_media(head: bytes) -> bool:
    """Whether HEIC, HEIF or AVIF."""
    return head[ISO_MEDIA_OFFSET : ISO_MEDIA_OFFSET + 8] in ISO_MEDIA_BRANDS
