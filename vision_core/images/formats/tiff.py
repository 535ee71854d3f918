"""The reader of TIFF: plain pictures through Pillow, every other file through tifffile.

Pillow is quick, and reads LZW and JPEG without further packages. But it shows the first of several
pages, and takes the first of several bands for the picture, without a word; so it is asked only
where the tags of TIFF 6.0 leave no doubt.
"""

from typing import BinaryIO

from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from vision_core.images.formats import pictures
from vision_core.images.formats.tiff_header import STACK_BEHIND_A_PAGE, has_one_page
from vision_core.images.pixel_options import PixelOptions
from vision_core.images.stored import Stored
from vision_core.unreadable import UnreadableImage

MAGIC = (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")

ONLY_TIFF = ["TIFF"]  # Pillow tries one format after the other

# tags of TIFF 6.0
BITS = 258
COMPRESSION = 259
PHOTOMETRIC = 262
DESCRIPTION = 270
SAMPLES = 277
PLANAR = 284
EXTRA_SAMPLES = 338
SAMPLE_FORMAT = 339
# values of PlanarConfiguration and SampleFormat
CONTIGUOUS = 1
UNSIGNED = 1
VOID = 4
ALPHAS = ((1,), (2,))  # ExtraSamples: associated and unassociated alpha
# what a plain picture lacks: MetaMorph's and Zeiss's stacks within one page, depth, GDAL's nodata
UNPLAIN_TAGS = {32997, 33628, 33629, 33630, 33631, 34412, 42113}
# none, CCITT, LZW, JPEG, deflate, PackBits: what Pillow's libtiff is always built with
PLAIN_COMPRESSIONS = {1, 2, 3, 4, 5, 6, 7, 8, 32773, 32946}
# PhotometricInterpretation -> samples of a pixel: grey (white or black is zero), RGB, palette,
# CMYK, YCbCr
COLOUR_SAMPLES = {0: 1, 1: 1, 2: 3, 3: 1, 5: 4, 6: 3}
RGB = 2
GREYS = (0, 1)


def read(data: bytes, num_channels: int, options: PixelOptions, part: int | None) -> Stored:
    """Read the bands of an image, in one page or in as many pages as channels are asked for; see
    `tiff_pages.py`."""
    if num_channels in (1, 3) and not part:
        picture = open_plain(data, options.max_pixels)
        if picture is not None:
            return pictures.numbers_of(picture)
    from vision_core.images.formats import tiff_pages

    return tiff_pages.read(data, num_channels, options, part)


def read_numbers(data: bytes, max_pixels: int) -> Stored:
    """The numbers of one channel, at most `max_pixels`; of a palette the indices. Raises as
    `tiff_pages.read` does."""
    from vision_core.images.formats import tiff_pages

    return tiff_pages.read(data, 1, PixelOptions(max_pixels=max_pixels), None, colours_of_palette=False)


def count_parts(file: BinaryIO, num_channels: int) -> int:
    """Count the images of a file; of most files the header alone is read. Raises UnreadableImage."""
    if has_one_page(file):
        return 1
    from vision_core.images.formats import tiff_pages

    file.seek(0)
    return tiff_pages.count_parts(file, num_channels)


def open_plain(data: bytes, max_pixels: int, high_byte: bool = False) -> Image.Image | None:
    """The open file where Pillow gives its pixels as they are documented, or None. See
    `is_plain_page`."""
    try:
        picture = pictures.open_header(data, max_pixels, ONLY_TIFF)
    except Image.UnidentifiedImageError:
        return None
    except UnreadableImage as error:
        if error.reason.startswith("unsupported_mode"):
            return None
        raise
    return picture if is_alone(picture) and is_plain_page(picture, high_byte) else None


def is_alone(picture: TiffImageFile) -> bool:
    """Whether the file holds one page and no stack behind it."""
    return picture.n_frames == 1 and not STACK_BEHIND_A_PAGE.search(str(picture.tag_v2.get(DESCRIPTION, "")))


def is_plain_page(picture: TiffImageFile, high_byte: bool = False) -> bool:
    """Whether a page is of 1 to 8 bits, or of grey of 16, with the samples that its colours have
    and perhaps alpha.

    high_byte: also where it is of colours of 16 bits, of which Pillow keeps the high byte.
    """
    tags = picture.tag_v2
    photometric, samples = tags.get(PHOTOMETRIC), tags.get(SAMPLES, 1)
    if UNPLAIN_TAGS & tags.keys() or not _has_its_samples(tags, photometric, samples):
        return False
    bits = set(tags.get(BITS, (1,)))
    few_bits = bits == {8} or (samples == 1 and bits <= {1, 2, 4})
    sixteen_bits_of_grey = bits == {16} and photometric in GREYS and samples == 1
    sixteen_bits_of_colour = bits == {16} and photometric == RGB and high_byte
    if not (few_bits or sixteen_bits_of_grey or sixteen_bits_of_colour):
        return False
    unsigned = SAMPLE_FORMAT not in tags or set(tags[SAMPLE_FORMAT]) <= {UNSIGNED, VOID}
    return unsigned and tags.get(COMPRESSION, 1) in PLAIN_COMPRESSIONS


def _has_its_samples(tags, photometric: int | None, samples: int) -> bool:
    """Whether a page has the samples that its colours need, and at most alpha beside them."""
    if photometric not in COLOUR_SAMPLES or (samples > 1 and tags.get(PLANAR, CONTIGUOUS) != CONTIGUOUS):
        return False
    extra = samples - COLOUR_SAMPLES[photometric]
    return extra == 0 or (extra == 1 and tuple(tags.get(EXTRA_SAMPLES, ())) in ALPHAS)
