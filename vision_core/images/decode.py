"""The one decoder: encoded bytes to a tensor, or a named reason why not."""

import io
import struct
import warnings
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile
from torch import Tensor

from vision_core.errors import UserError
from vision_core.images.multiband import NPY_MAGIC, WHITE_IS_ZERO, decode_npy, decode_tiff
from vision_core.images.pixel_options import AS_STORED, PixelOptions
from vision_core.images.unreadable import MAX_PIXELS, MIN_SIDE, UnreadableImage, check_size

__all__ = [
    "FORMATS",
    "MAX_PIXELS",
    "MIN_SIDE",
    "UnreadableImage",
    "decode_image",
    "decode_values",
    "grey_levels",
    "is_picture",
    "picture_size",
    "picture_tensor",
]
Result = TypeVar("Result")

FORMATS = ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"]
EIGHT_BIT_MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"}
SIXTEEN_BIT_MODES = {"I;16", "I;16B", "I;16L", "I;16N"}
NUMBER_FORMATS = {"PNG", "TIFF"}  # the others change numbers, or have none

TIFF_MAGIC = (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")
OTHER_MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"RIFF")
BMP_MAGIC = b"BM"

# tags of TIFF 6.0
IMAGE_WIDTH_TAG, IMAGE_LENGTH_TAG = 256, 257
PHOTOMETRIC_TAG = 262
SAMPLE_FORMAT_TAG, SIGNED = 339, 2

ORIENTATION_TAG = 0x0112
# EXIF 2.3, tag 0x0112: what brings the stored rows and columns upright
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode_image(data: bytes, num_channels: int = 3, options: PixelOptions = AS_STORED, part: int | None = None) -> Tensor:
    """Encoded bytes to `[C, H, W]`: uint8 RGB for 3 channels, float32 for any other number.

    Sizes are checked in the header, before any pixel is decoded. EXIF orientation is applied, alpha dropped, the first frame of an
    animation taken. 16-bit grey is divided by 257; 16-bit colour comes from Pillow as its high byte. Where a TIFF says that
    white is zero (MinIsWhite), 8 and 16 bits are inverted. Float and signed values have no known scale and are refused.

    With another number of channels, multi-band TIFF and `.npy` are read (see `multiband.py`; nothing is rotated); with 1 channel
    pictures become luminance 0..1 (ITU-R 601-2, Pillow's "L").

    A flipped bit inside JPEG or WebP data mostly decodes to other pixels, which no decoder notices; only a content hash does.

    Raises:
        UnreadableImage: for any bytes that are not a whole, supported image.
        UserError: a multi-band TIFF where the package tifffile is missing.
    """
    return _guarded(lambda: _decode(data, num_channels), data)


def decode_values(data: bytes) -> Tensor:
    """The numbers of a PNG or TIFF with one channel, int32 `[H, W]`: grey values of 8 or 16 bits, 0 and 1, or palette indices, never colours.

    Checked and turned as in `decode_image`. Raises UnreadableImage, with a reason that begins with `not_numbers` for whole pictures of another kind: colour,
    lossy formats, and grey of 2 or 4 bits, which Pillow spreads over 0 to 255.
    """
    return _guarded(lambda: _numbers(data), data)


def picture_tensor(picture: Image.Image) -> Tensor:
    """`[3, H, W]` uint8 of a PIL image: what `decode_image` makes of the file that the image was opened from.

    The image may be loaded or not. Of an animation the frame is taken at which the image stands, which is the first after
    opening. EXIF orientation is applied where the image still has one. A copy of a 16-bit TIFF no longer says that white
    is zero. Sizes are not checked.

    Raises:
        UnreadableImage: for values of no known scale, and where the file behind the image cannot be read to its end.
    """
    return _guarded(lambda: _rgb(_seen(_of_known_scale(picture))), b"")


def is_picture(data: bytes) -> bool:
    """Whether `data` begins as the files of `FORMATS` do."""
    return data.startswith((*TIFF_MAGIC, *OTHER_MAGIC, BMP_MAGIC))


def grey_levels(values: np.ndarray) -> np.ndarray:
    """Grey of 16 bits, of any shape, as uint8: divided by 257 and rounded."""
    levels = (values.astype(np.int64) + 128) // 257
    return levels.clip(0, 255).astype(np.uint8)


def picture_size(data: bytes) -> tuple[int, int]:
    """Height and width of the upright picture, from its header. Raises UnreadableImage."""
    return _guarded(lambda: _upright_size(_open_header(data)), data)


def _guarded(read: Callable[[], Result], data: bytes) -> Result:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return read()
    except (UnreadableImage, UserError):
        raise
    except Exception as error:  # the decoders raise a dozen types on bad bytes, none of which may end a run
        raise UnreadableImage(_reason(error, data)) from None


def _decode(data: bytes, num_channels: int) -> Tensor:
    if num_channels == 3:
        return _rgb(_seen(_open_header(data)))
    if data.startswith(NPY_MAGIC):
        return decode_npy(data, num_channels)
    if num_channels == 1:
        return _one_channel(data)
    if data.startswith(TIFF_MAGIC):
        return decode_tiff(data, num_channels)
    raise UnreadableImage(f"not_{num_channels}_channels" if data.startswith(OTHER_MAGIC) else "not_an_image")


def _seen(picture: Image.Image) -> Image.Image:
    """The picture as it is meant to be seen: upright, and the higher a value the brighter."""
    inverted = _is_inverted(picture)
    upright = _upright(picture)
    return Image.fromarray(65535 - np.asarray(upright)) if inverted else upright


def _is_inverted(picture: Image.Image) -> bool:
    """Whether white is zero in a TIFF of 16 bits; Pillow inverts those of 8 bits itself."""
    sixteen_bits = isinstance(picture, TiffImageFile) and picture.mode in SIXTEEN_BIT_MODES
    return sixteen_bits and picture.tag_v2.get(PHOTOMETRIC_TAG) == WHITE_IS_ZERO


def _upright(picture: Image.Image) -> Image.Image:
    """The picture with all its pixels read and turned, the values as they are stored."""
    picture = _loaded(picture)
    turn = UPRIGHT.get(_orientation(picture))
    return picture if turn is None else picture.transpose(turn)


def _loaded(picture: Image.Image) -> Image.Image:
    """The picture with all its pixels read.

    Pillow (seen in 13.0) maps an uncompressed TIFF into memory where it was opened by name, and takes the rows for columns
    if EXIF turns it by a quarter. The file is then read once more from that memory, unless somebody has changed the pixels.
    """
    picture.load()
    mapped = getattr(picture, "map", None) if isinstance(picture, TiffImageFile) else None
    if mapped is None or not picture.readonly:
        return picture
    again = Image.open(io.BytesIO(mapped[:]), formats=["TIFF"])
    again.seek(picture.tell())
    again.load()
    return again


def _open_header(data: bytes) -> Image.Image:
    """A PIL image of 8 or 16 bits and of a size that is allowed, no pixel read yet."""
    if data.startswith(b"GIF8"):
        check_size(*struct.unpack_from("<HH", data, 6))  # Pillow may fill the whole canvas while it opens a GIF
    picture = Image.open(io.BytesIO(data), formats=FORMATS)
    check_size(*picture.size)
    return _of_known_scale(picture)


def _of_known_scale(picture: Image.Image) -> Image.Image:
    """Refuse a picture whose values have no known place between black and white."""
    sixteen_bits = picture.mode in SIXTEEN_BIT_MODES or (picture.mode == "I" and picture.format == "PNG")
    if not sixteen_bits and picture.mode not in EIGHT_BIT_MODES:
        raise UnreadableImage(f"unsupported_mode {picture.mode}")
    if isinstance(picture, TiffImageFile) and SIGNED in picture.tag_v2.get(SAMPLE_FORMAT_TAG, ()):
        raise UnreadableImage("unsupported_mode int8")  # Pillow's "L", with -1 as 255
    return picture


def _orientation(picture: Image.Image) -> int:
    """The EXIF orientation; 1 (upright) where the EXIF block cannot be read: the pixels are whole all the same."""
    try:
        return picture.getexif().get(ORIENTATION_TAG, 1)
    except Exception:
        return 1


def _upright_size(picture: Image.Image) -> tuple[int, int]:
    width, height = picture.size
    if isinstance(picture, TiffImageFile):  # Pillow has exchanged the sides already
        width, height = picture.tag_v2[IMAGE_WIDTH_TAG], picture.tag_v2[IMAGE_LENGTH_TAG]
    return (width, height) if _orientation(picture) >= 5 else (height, width)


def _numbers(data: bytes) -> Tensor:
    header = _open_header(data)
    if header.format not in NUMBER_FORMATS:
        raise UnreadableImage(f"not_numbers {header.format}")
    if header.mode in EIGHT_BIT_MODES - {"1", "L", "P"}:
        raise UnreadableImage(f"not_numbers {header.mode}")
    stored = header.tile[0].args if header.tile else "L"  # of Pillow's raw decoder, such as L;4; for TIFF the first of several
    stored = stored if isinstance(stored, str) else stored[0]
    if header.mode == "L" and stored != "L":
        raise UnreadableImage(f"not_numbers {stored}")
    return torch.from_numpy(np.asarray(_upright(header)).astype(np.int32))


def _rgb(picture: Image.Image) -> Tensor:
    if picture.mode in EIGHT_BIT_MODES:
        return torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1).contiguous()
    return torch.from_numpy(grey_levels(np.asarray(picture))).expand(3, -1, -1).contiguous()


def _one_channel(data: bytes) -> Tensor:
    """Luminance of a picture; the values of a TIFF that Pillow does not take for a picture (float, signed, 32 bits)."""
    try:
        picture = _seen(_open_header(data))
    except (UnreadableImage, Image.UnidentifiedImageError) as error:
        unsupported = isinstance(error, Image.UnidentifiedImageError) or error.reason.startswith("unsupported_mode")
        if unsupported and data.startswith(TIFF_MAGIC):
            return decode_tiff(data, 1)
        raise
    if picture.mode in EIGHT_BIT_MODES:
        return torch.from_numpy(np.array(picture.convert("L"), dtype=np.float32))[None] / 255
    return torch.from_numpy(np.asarray(picture).astype(np.float32))[None] / 65535


def _reason(error: Exception, data: bytes) -> str:
    """A name for what Pillow, NumPy or tifffile raised on `data`."""
    if isinstance(error, MemoryError | Image.DecompressionBombError | Image.DecompressionBombWarning):
        return "too_large"
    if isinstance(error, EOFError) or "truncated" in str(error).lower() or _short_webp(data):
        return "truncated"
    if isinstance(error, Image.UnidentifiedImageError):
        if data.startswith(TIFF_MAGIC):
            return "unsupported_tiff"
        return "corrupt" if data.startswith(OTHER_MAGIC) else "not_an_image"
    return "corrupt"


def _short_webp(data: bytes) -> bool:
    """Whether a WebP file ends before the length in its RIFF header; Pillow's error does not tell."""
    return data[:4] == b"RIFF" and data[8:12] == b"WEBP" and len(data) < 8 + int.from_bytes(data[4:8], "little")
