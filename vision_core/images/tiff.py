"""Reads TIFF: plain pictures through Pillow, everything else through tifffile."""

import io
import math
import zlib

import numpy as np
from PIL import Image

from vision_core.errors import UserError
from vision_core.images import pictures
from vision_core.images.pixel_options import PixelOptions
from vision_core.images.stored import Stored, scale_of_type
from vision_core.images.unreadable import UnreadableImage, check_size, check_values

MAGIC = (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")
DEFLATE = (8, 32946)
# none, LZW, deflate (two numbers), PackBits: codecs whose output is bounded by the image's own size
TIFF_COMPRESSIONS = (1, 5, *DEFLATE, 32773)
REDUCED_OR_MASK = 0b101
WHITE_IS_ZERO = 0  # PhotometricInterpretation of TIFF 6.0


def open_plain(data: bytes, max_pixels: int) -> Image.Image | None:
    """The open file where Pillow gives its pixels as they are documented, or None."""
    try:
        picture = pictures.open_header(data, max_pixels)
    except (UnreadableImage, Image.UnidentifiedImageError) as error:
        unsupported = isinstance(error, Image.UnidentifiedImageError) or error.reason.startswith("unsupported_mode")
        if unsupported:
            return None
        raise
    return picture if picture.n_frames == 1 else None


def read(data: bytes, num_channels: int, options: PixelOptions, part: int | None) -> Stored:
    """One page with all bands, or one page for each.

    Overviews and masks (TIFF 6.0, NewSubfileType bits 0 and 2) are passed over. LZW needs the package imagecodecs.
    """
    try:
        import tifffile
    except ImportError:
        raise UserError("multi-band TIFF needs the package tifffile; pip install 'vision-encoder-fusion[pretrain]'") from None
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        pages = [page for page in file.pages if not page.subfiletype & REDUCED_OR_MASK]
        if not pages or any(page.shape != pages[0].shape or page.dtype != pages[0].dtype for page in pages):
            raise UnreadableImage("unsupported_tiff")
        bands = [_check_page(page, options.max_pixels) for page in pages]
        if sum(bands) != num_channels and not (sum(bands) == 1 and num_channels == 3):
            raise UnreadableImage(f"not_{num_channels}_channels {sum(bands)} bands")
        for page in pages:
            _check_segments(page, data, options.max_pixels)
        try:
            planes = [page.asarray(maxworkers=1) for page in pages]
        except ValueError as error:
            raise UnreadableImage("needs_imagecodecs" if "imagecodecs" in str(error) else "corrupt") from None
        values = np.concatenate([_channels_first(plane, page.axes) for plane, page in zip(planes, pages, strict=True)])
        full_scale = scale_of_type(values.dtype)
        if full_scale and len(values) == 1 and pages[0].photometric == WHITE_IS_ZERO:
            full_scale = full_scale[::-1]
        return Stored(values, full_scale)


def _channels_first(plane: np.ndarray, axes: str) -> np.ndarray:
    return plane[None] if axes == "YX" else np.moveaxis(plane, axes.index("S"), 0)


def _check_page(page, max_pixels: int) -> int:
    """The number of bands of a page, whose type and size are possible."""
    if page.dtype is None or page.dtype.kind not in "uifb":
        raise UnreadableImage(f"unsupported_type {page.dtype}")
    if page.axes not in ("YX", "YXS", "SYX"):
        raise UnreadableImage(f"unsupported_axes {page.axes}")
    check_size(page.imagewidth, page.imagelength, max_pixels)
    check_values(math.prod(page.shape), max_pixels)
    return page.samplesperpixel


def _check_segments(page, data: bytes, max_pixels: int) -> None:
    """Refuse strips and tiles that are larger than the image, or that inflate beyond their own size."""
    if page.compression not in TIFF_COMPRESSIONS:
        raise UnreadableImage(f"unsupported_compression {int(page.compression)}")
    check_values(math.prod(page.chunks), max_pixels)
    if page.compression in DEFLATE:
        limit = math.prod(page.chunks) * page.dtype.itemsize
        for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True):
            if len(zlib.decompressobj().decompress(data[offset : offset + count], limit + 1)) > limit:
                raise UnreadableImage("corrupt")
