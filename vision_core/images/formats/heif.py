"""The reader of HEIC, HEIF and AVIF, by Pillow where it can, and otherwise by pillow-heif."""

import io

from PIL import Image, features

from vision_core.errors import UserError
from vision_core.images.formats import pictures
from vision_core.images.formats.optional_packages import PILLOW_HEIF
from vision_core.images.pixel_options import PixelOptions
from vision_core.images.stored import Stored
from vision_core.unreadable import check_size

# the kind of file in its first box, ISO/IEC 14496-12
AVIF_BRANDS = (b"ftypavif", b"ftypavis")
HEIF_BRANDS = (
    b"ftypheic",
    b"ftypheix",
    b"ftypheim",
    b"ftypheis",
    b"ftyphevc",
    b"ftyphevx",
    b"ftypmif1",
    b"ftypmsf1",
)
BRAND_AT = 4


def pillow_reads_avif() -> bool:
    """Whether this Pillow was built with AVIF."""
    return bool(features.check("avif"))


def read(data: bytes, num_channels: int, options: PixelOptions, part: int | None) -> Stored:
    """Read the first picture, upright, with 8 bits a channel; of 10 and 12 bits the upper 8 are kept."""
    pictures.check_picture_channels(num_channels)
    picture = _open(data)
    check_size(*picture.size, options.max_pixels)
    return pictures.numbers_of(pictures.of_known_scale(picture))


def _open(data: bytes) -> Image.Image:
    if data.startswith(AVIF_BRANDS, BRAND_AT) and pillow_reads_avif():
        return Image.open(io.BytesIO(data), formats=["AVIF"])
    try:
        from pillow_heif import HeifImageFile
    except ImportError:
        raise UserError(PILLOW_HEIF.cure) from None
    return HeifImageFile(io.BytesIO(data))
