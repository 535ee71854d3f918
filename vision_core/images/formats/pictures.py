"""The reader of what Pillow reads: JPEG, PNG, WebP, GIF, BMP and plain TIFF."""

import io
import struct

import numpy as np
import torch
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile
from torch import Tensor

from vision_core.images.formats.deep_png import is_deep, read_deep
from vision_core.images.formats.turning import UPRIGHT, turned
from vision_core.images.pixel_options import PixelOptions
from vision_core.images.pixels import grey_levels
from vision_core.images.stored import Stored
from vision_core.unreadable import UnreadableImage, check_size

FORMATS = ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"]
EIGHT_BIT_MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"}
GREY_MODES = {"1", "L", "LA"}
SIXTEEN_BIT_MODES = {"I;16", "I;16B", "I;16L", "I;16N"}

# tags of TIFF 6.0
PHOTOMETRIC_TAG = 262
SAMPLE_FORMAT_TAG = 339
SIGNED = 2
WHITE_IS_ZERO = 0
ORIENTATION_TAG = 0x0112


def read(data: bytes, num_channels: int, options: PixelOptions, part: int | None) -> Stored:
    """Read one channel of grey of 8 or 16 bits, or three of colour. Alpha is dropped, the index of a
    palette becomes its colour."""
    check_picture_channels(num_channels)
    picture = open_header(data, options.max_pixels)
    if is_deep(data):
        values = turned(read_deep(data, options.max_pixels), orientation(picture))
        return Stored(values, (0, 65535), is_colour=len(values) == 3)
    return numbers_of(picture)


def numbers_of(picture: Image.Image) -> Stored:
    """The numbers of an open picture, turned upright."""
    white_is_zero = is_inverted(picture)
    upright_picture = upright(picture)
    if upright_picture.mode not in EIGHT_BIT_MODES:
        values = np.asarray(upright_picture).astype(np.uint16)[None]
        return Stored(values, (65535, 0) if white_is_zero else (0, 65535))
    if upright_picture.mode in GREY_MODES:
        return Stored(np.array(upright_picture.convert("L"))[None], (0, 255))
    colours = np.array(upright_picture.convert("RGB")).transpose(2, 0, 1)
    return Stored(colours, (0, 255), is_colour=True)


def check_picture_channels(num_channels: int) -> None:
    """Refuse to make other than one or three channels of a picture."""
    if num_channels not in (1, 3):
        raise UnreadableImage(f"not_{num_channels}_channels")


def open_header(data: bytes, max_pixels: int, formats: list[str] = FORMATS) -> Image.Image:
    """A PIL image of 8 or 16 bits and of a size that is allowed, no pixel read yet."""
    if data.startswith(b"GIF8"):
        # Pillow may fill all of the canvas while it opens a GIF
        check_size(*struct.unpack_from("<HH", data, 6), max_pixels)
    picture = Image.open(io.BytesIO(data), formats=formats)
    check_size(*picture.size, max_pixels)
    return of_known_scale(picture)


def of_known_scale(picture: Image.Image) -> Image.Image:
    """Refuse a picture whose values have no known place between black and white."""
    sixteen_bits = picture.mode in SIXTEEN_BIT_MODES or (picture.mode == "I" and picture.format == "PNG")
    if not sixteen_bits and picture.mode not in EIGHT_BIT_MODES:
        raise UnreadableImage(f"unsupported_mode {picture.mode}")
    if isinstance(picture, TiffImageFile) and SIGNED in picture.tag_v2.get(SAMPLE_FORMAT_TAG, ()):
        raise UnreadableImage("unsupported_mode int8")  # Pillow's "L", with -1 as 255
    return picture


def pixels_of(picture: Image.Image, num_channels: int) -> Tensor:
    """The pixels of a picture, uint8 `[3, H, W]` or float32 `[1, H, W]`: what `to_pixels` makes of
    `numbers_of(picture)` without a scale, in fewer steps."""
    picture = _upright_and_bright(picture)
    if num_channels == 3:
        return _rgb(picture)
    if picture.mode in EIGHT_BIT_MODES:
        values = np.array(picture.convert("L"), dtype=np.float32)
        return torch.from_numpy(values)[None].div_(255)
    values = np.asarray(picture).astype(np.float32)
    return torch.from_numpy(values)[None].div_(65535)


def _rgb(picture: Image.Image) -> Tensor:
    """The colours of a picture, uint8 `[3, H, W]`."""
    if picture.mode in EIGHT_BIT_MODES:
        return torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1).contiguous()
    return torch.from_numpy(grey_levels(np.asarray(picture))).expand(3, -1, -1).contiguous()


def _upright_and_bright(picture: Image.Image) -> Image.Image:
    """The picture as it is meant to be seen: upright, and the higher a value the brighter."""
    is_dark_at_the_top = is_inverted(picture)
    upright_picture = upright(picture)
    if is_dark_at_the_top:
        return Image.fromarray(65535 - np.asarray(upright_picture))
    return upright_picture


def is_inverted(picture: Image.Image) -> bool:
    """Whether white is zero in a TIFF of 16 bits; Pillow inverts those of 8 bits itself."""
    sixteen_bits = isinstance(picture, TiffImageFile) and picture.mode in SIXTEEN_BIT_MODES
    return sixteen_bits and picture.tag_v2.get(PHOTOMETRIC_TAG) == WHITE_IS_ZERO


def upright(picture: Image.Image) -> Image.Image:
    """The picture with all its pixels read and turned; the values stay as they are stored."""
    picture = _load_pixels(picture)
    turn = UPRIGHT.get(orientation(picture))
    return picture if turn is None else picture.transpose(turn)


def _load_pixels(picture: Image.Image) -> Image.Image:
    """The picture with all its pixels read.

    Pillow (seen in 13.0) maps an uncompressed TIFF into memory where it was opened by name, and
    takes the rows for columns if EXIF turns it by a quarter. The file is then read once more from
    that memory, unless somebody has changed the pixels.
    """
    picture.load()
    mapped = getattr(picture, "map", None) if isinstance(picture, TiffImageFile) else None
    if mapped is None or not picture.readonly:
        return picture
    again = Image.open(io.BytesIO(mapped[:]), formats=["TIFF"])
    again.seek(picture.tell())
    again.load()
    return again


def orientation(picture: Image.Image) -> int:
    """The EXIF orientation, or 1 (upright) where the EXIF block cannot be read, which does not harm
    the pixels."""
    try:
        return picture.getexif().get(ORIENTATION_TAG, 1)
    except Exception:
        return 1
