"""The decoder of all images: encoded bytes become a tensor, or a named reason why not."""

import io
import os
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile
from torch import Tensor

from vision_core.errors import UserError
from vision_core.files.regular_files import read_regular_file
from vision_core.images.formats import pictures, tiff
from vision_core.images.formats.by_content import format_of, reader_of
from vision_core.images.formats.deep_png import is_deep
from vision_core.images.formats.quiet import quiet_libraries
from vision_core.images.formats.volumes import inflated
from vision_core.images.pixel_options import AS_STORED, PixelOptions
from vision_core.images.pixels import grey_levels, to_pixels
from vision_core.images.stored import Stored, as_asked
from vision_core.unreadable import MAX_PIXELS, MIN_SIDE, UnreadableImage

__all__ = [
    "MAX_PIXELS",
    "MIN_SIDE",
    "UnreadableImage",
    "count_parts",
    "decode_image",
    "decode_values",
    "grey_levels",
    "is_picture",
    "picture_size",
    "picture_tensor",
    "read_stored",
]
Result = TypeVar("Result")

NUMBER_FORMATS = {"PNG", "TIFF"}  # other formats change numbers, or hold only colours
# tags of TIFF 6.0
IMAGE_WIDTH_TAG = 256
IMAGE_LENGTH_TAG = 257


def decode_image(
    data: bytes, num_channels: int = 3, options: PixelOptions = AS_STORED, part: int | None = None
) -> Tensor:
    """Decode bytes to `[C, H, W]`: `read_stored` followed by `to_pixels`.

    Sizes are checked in the header, before any pixel is decoded. EXIF orientation is applied, alpha
    is dropped, and the first frame of an animation is taken. Pictures of 8 bits become luminance
    0..1 (ITU-R 601-2, Pillow's "L") where one channel is asked for.

    A flipped bit inside JPEG or WebP data mostly decodes to other pixels, which no decoder notices;
    only a content hash does.

    Raises:
        UnreadableImage: for any bytes that are not a complete, supported image.
        UserError: where a package that reads the format is missing.
    """
    return _guarded(lambda: _decode(data, num_channels, options, part), data)


def read_stored(
    data: bytes, num_channels: int = 3, options: PixelOptions = AS_STORED, part: int | None = None
) -> Stored:
    """Read the numbers of an image as its file has them, and which of them are missing. Raises as
    `decode_image` does.

    Args:
        num_channels: how many channels are wanted of the file. The result may have one channel
            where three are wanted, or the three of a colour where one is. With `options.bands` it
            is the number of channels of the file, and the result has those bands only.
        part: the number of the image in a file that holds several, from 0 on.
    """
    return _guarded(lambda: _read(data, num_channels, options, part), data)


def count_parts(data: bytes, num_channels: int = 3) -> int:
    """Count the images of `num_channels` that a file holds: 1 where it is one image. Raises as
    `decode_image` does."""
    return _guarded(lambda: _count_parts(data, num_channels), data)


def decode_values(data: bytes, max_pixels: int = MAX_PIXELS) -> Tensor:
    """Read the numbers of a PNG or TIFF with one channel as int32 `[H, W]`: grey values of 8 or 16
    bits, 0 and 1, or palette indices, never colours.

    The file is checked and turned upright as in `decode_image`.

    max_pixels: the number of pixels of the largest image that is read.

    Raises UnreadableImage. Its reason begins with `not_numbers` for intact pictures of another kind:
    colour, lossy formats, and grey of 2 or 4 bits, which Pillow spreads over 0 to 255.
    """
    return _guarded(lambda: _numbers(data, max_pixels), data)


def picture_tensor(picture: Image.Image) -> Tensor:
    """Turn a PIL image into `[3, H, W]` uint8, as `decode_image` would decode the file that it was
    opened from.

    The image may be loaded or not. Of an animation the current frame is taken, which is the first
    after opening. EXIF orientation is applied where the image still has one. A copy of a 16-bit
    TIFF no longer says that white is zero. A TIFF whose pixels Pillow does not give as they are
    documented is read again from its file, and a later page to which the image was turned is taken
    as it is. Sizes are not checked.

    Raises:
        UnreadableImage: for values of no known scale, where the file behind the image cannot be
            read to its end, and not_its_files_pixels where the file would have to be read again and
            is not at hand.
    """
    return _guarded(lambda: _pixels_of_picture(picture), b"")


def is_picture(data: bytes) -> bool:
    """Whether `data` begins as the files of a known format do."""
    return format_of(data) is not None


def picture_size(data: bytes, options: PixelOptions = AS_STORED, part: int | None = None) -> tuple[int, int]:
    """The height and width of the upright image of three channels, read from its header where
    Pillow reads it. Raises as `decode_image` does."""
    return _guarded(lambda: _upright_size(data, options, part), data)


def _guarded(read: Callable[[], Result], data: bytes) -> Result:
    try:
        with quiet_libraries():
            return read()
    except (UnreadableImage, UserError):
        raise
    except Exception as error:  # the decoders raise a dozen types on bad bytes, none of which may end a run
        raise UnreadableImage(_reason(error, data)) from None


def _decode(data: bytes, num_channels: int, options: PixelOptions, part: int | None) -> Tensor:
    data = inflated(data)
    as_documented = (
        options.scale is None and options.nodata is None and options.bands is None and part is None
    )
    picture = _plain_picture(data, num_channels, options.max_pixels) if as_documented else None
    if picture is not None:
        return pictures.pixels_of(picture, num_channels)
    return to_pixels(_read(data, num_channels, options, part), options.image_channels(num_channels), options)


def _plain_picture(data: bytes, num_channels: int, max_pixels: int) -> Image.Image | None:
    """Open a picture whose pixels Pillow gives as they are documented; None for any other."""
    reader = reader_of(data)
    if num_channels not in (1, 3) or reader not in (pictures, tiff):
        return None
    if reader is tiff:
        return tiff.open_plain(data, max_pixels, high_byte=num_channels == 3)
    if num_channels == 1 and is_deep(data):
        return None
    return pictures.open_header(data, max_pixels)


def _read(data: bytes, num_channels: int, options: PixelOptions, part: int | None) -> Stored:
    data = inflated(data)
    return as_asked(reader_of(data).read(data, num_channels, options, part), options)


def _count_parts(data: bytes, num_channels: int) -> int:
    data = inflated(data)
    count = getattr(reader_of(data), "count_parts", None)
    return 1 if count is None else count(io.BytesIO(data), num_channels)


def _upright_size(data: bytes, options: PixelOptions, part: int | None) -> tuple[int, int]:
    data = inflated(data)
    picture = _plain_picture(data, 3, options.max_pixels) if part is None else None
    if picture is None:
        return tuple(_read(data, 3, options, part).values.shape[1:])
    width, height = picture.size
    if isinstance(picture, TiffImageFile):  # Pillow has exchanged the sides already
        width, height = picture.tag_v2[IMAGE_WIDTH_TAG], picture.tag_v2[IMAGE_LENGTH_TAG]
    return (width, height) if pictures.orientation(picture) >= 5 else (height, width)


def _pixels_of_picture(picture: Image.Image) -> Tensor:
    if isinstance(picture, TiffImageFile) and not _shows_its_numbers(picture):
        return _decode(_content_behind(picture), 3, AS_STORED, None)
    return pictures.pixels_of(pictures.of_known_scale(picture), 3)


def _shows_its_numbers(picture: TiffImageFile) -> bool:
    """Whether Pillow gives the pixels that `decode_image` would; a later page was chosen by
    somebody."""
    is_alone = picture.tell() > 0 or tiff.is_alone(picture)
    return is_alone and tiff.is_plain_page(picture, high_byte=True)


def _content_behind(picture: TiffImageFile) -> bytes:
    """Read the file that the picture was opened from."""
    if picture.tell() > 0:
        raise UnreadableImage("not_its_files_pixels")
    if picture.fp is not None and not picture.fp.closed:
        place = picture.fp.tell()
        picture.fp.seek(0)
        data = picture.fp.read()
        picture.fp.seek(place)
        return data
    if picture.filename:
        return read_regular_file(os.path.abspath(picture.filename))
    raise UnreadableImage("not_its_files_pixels")


def _numbers(data: bytes, max_pixels: int) -> Tensor:
    if reader_of(data) is tiff and tiff.open_plain(data, max_pixels) is None:
        return _numbers_of_pages(data, max_pixels)
    header = pictures.open_header(data, max_pixels)
    if header.format not in NUMBER_FORMATS:
        raise UnreadableImage(f"not_numbers {header.format}")
    if header.mode in pictures.EIGHT_BIT_MODES - {"1", "L", "P"}:
        raise UnreadableImage(f"not_numbers {header.mode}")
    # the mode for Pillow's raw decoder, such as L;4; for TIFF it is the first of several arguments
    stored = header.tile[0].args if header.tile else "L"
    if not isinstance(stored, str):
        stored = stored[0]
    if header.mode == "L" and stored != "L":
        raise UnreadableImage(f"not_numbers {stored}")
    return torch.from_numpy(np.asarray(pictures.upright(header)).astype(np.int32))


def _numbers_of_pages(data: bytes, max_pixels: int) -> Tensor:
    """Read the numbers of a TIFF that Pillow does not read as they are documented."""
    stored = tiff.read_numbers(data, max_pixels)
    if len(stored.values) > 1:
        raise UnreadableImage("not_numbers RGB")
    if stored.full_scale is None:
        raise UnreadableImage(f"unsupported_mode {stored.values.dtype.name}")
    return torch.from_numpy(stored.values[0].astype(np.int32))


def _reason(error: Exception, data: bytes) -> str:
    """The reason for an error that Pillow, NumPy or tifffile raised on `data`."""
    if isinstance(error, MemoryError | Image.DecompressionBombError):
        return "too_large"
    if isinstance(error, EOFError) or "truncated" in str(error).lower() or _short_webp(data):
        return "truncated"
    if isinstance(error, Image.UnidentifiedImageError):
        if data.startswith(tiff.MAGIC):
            return "unsupported_tiff"
        return "not_an_image" if format_of(data) is None else "corrupt"
    return "corrupt"


def _short_webp(data: bytes) -> bool:
    """Whether a WebP file ends before the length in its RIFF header, which Pillow's error does not
    say."""
    is_webp = data[:4] == b"RIFF" and data[8:12] == b"WEBP"
    return is_webp and len(data) < 8 + int.from_bytes(data[4:8], "little")
