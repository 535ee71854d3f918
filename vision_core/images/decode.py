"""The one decoder: encoded bytes to a tensor, or a named reason why not."""

import io
import warnings

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

FORMATS = ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"]
MAX_PIXELS = 64_000_000
MIN_SIDE = 8
RGB_MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"}
SIXTEEN_BIT_MODES = {"I;16", "I;16B", "I;16L", "I;16N", "I"}
NPY_MAGIC = b"\x93NUMPY"
TIFF_MAGIC = (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")


class UnreadableImage(Exception):
    """An image that is not to be used; `reason` is a short name such as not_an_image, truncated, corrupt, too_large."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __reduce__(self):
        return UnreadableImage, (self.reason,)


def decode_image(data: bytes, num_channels: int = 3) -> Tensor:
    """Encoded bytes to `[C, H, W]`: uint8 RGB for 3 channels, float32 for any other number.

    Sizes are checked in the header, before any pixel is decoded. EXIF orientation is applied, alpha dropped, 16-bit grey divided by
    257, the first frame of an animation taken. With 3 channels `.npy` and multi-band files are refused; with another number they are read
    (channels first or last, uint8 / 255, uint16 / 65535, floats as they are), and with 1 pictures become luminance 0..1.

    Raises:
        UnreadableImage: for any bytes that are not a whole, supported picture.
    """
    if num_channels == 3:
        return _to_tensor(_decode_picture(data).convert("RGB"))
    if data.startswith(NPY_MAGIC):
        return _bands(_read_npy(data), num_channels)
    if data.startswith(TIFF_MAGIC):
        return _bands(_read_tiff(data), num_channels)
    if num_channels == 1:
        return _to_tensor(_decode_picture(data).convert("L")).float() / 255
    raise UnreadableImage(f"not_{num_channels}_channels")


def _decode_picture(data: bytes) -> Image.Image:
    """A PIL image with all its pixels read, orientation applied, in an 8-bit mode."""
    if not data:
        raise UnreadableImage("empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            picture = Image.open(io.BytesIO(data), formats=FORMATS)
            check_size(*picture.size)
            if picture.mode in SIXTEEN_BIT_MODES:
                return ImageOps.exif_transpose(_from_sixteen_bits(picture))
            if picture.mode not in RGB_MODES:
                raise UnreadableImage(f"unsupported_mode {picture.mode}")
            picture.load()
            return ImageOps.exif_transpose(picture)
    except UnreadableImage:
        raise
    except Image.UnidentifiedImageError:
        raise UnreadableImage("not_an_image") from None
    except Image.DecompressionBombError:
        raise UnreadableImage("too_large") from None
    except Exception as error:  # PIL's decoders raise a dozen types on bad bytes
        raise UnreadableImage("truncated" if "truncated" in str(error).lower() else "corrupt") from None


def check_size(width: int, height: int) -> None:
    """Refuse a picture by the size in its header."""
    if width * height > MAX_PIXELS:
        raise UnreadableImage("too_large")
    if min(width, height) < MIN_SIDE:
        raise UnreadableImage("too_small")


def _from_sixteen_bits(picture: Image.Image) -> Image.Image:
    values = np.asarray(picture).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise UnreadableImage("unsupported_mode I")
    result = Image.fromarray((values // 257).astype(np.uint8))
    result.info.update(exif=picture.info.get("exif", b""))
    return result


def _to_tensor(picture: Image.Image) -> Tensor:
    pixels = torch.from_numpy(np.array(picture))
    return pixels.permute(2, 0, 1).contiguous() if pixels.ndim == 3 else pixels[None]


def _read_npy(data: bytes) -> np.ndarray:
    stream = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(stream)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read_header(stream)
        if dtype.hasobject:
            raise UnreadableImage("python_objects")
        if np.prod(shape, dtype=np.float64) * dtype.itemsize > len(data):
            raise UnreadableImage("truncated")
        return np.load(io.BytesIO(data), allow_pickle=False)
    except UnreadableImage:
        raise
    except Exception:  # NumPy's header parser raises several types on bad bytes
        raise UnreadableImage("corrupt") from None


def _read_tiff(data: bytes) -> np.ndarray:
    try:
        import tifffile
    except ImportError:
        raise UnreadableImage("needs tifffile: pip install 'vision-encoder-fusion[pretrain]'") from None
    try:
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            series = file.series[0]
            if series.size > MAX_PIXELS * 4:
                raise UnreadableImage("too_large")
            return series.asarray()
    except UnreadableImage:
        raise
    except Exception:  # so does tifffile
        raise UnreadableImage("corrupt") from None


def _bands(array: np.ndarray, num_channels: int) -> Tensor:
    """A 2- or 3-axis array to float32 `[C, H, W]`; the channel axis is the one, first or last, of `num_channels`."""
    array = array[None] if array.ndim == 2 and num_channels == 1 else array
    if array.ndim != 3 or num_channels not in (array.shape[0], array.shape[-1]):
        raise UnreadableImage(f"not_{num_channels}_channels")
    if array.shape[0] != num_channels:
        array = np.moveaxis(array, -1, 0)
    check_size(array.shape[2], array.shape[1])
    scale = {"uint8": 255, "uint16": 65535}.get(array.dtype.name, 1)
    if array.dtype.kind not in "uif":
        raise UnreadableImage(f"unsupported_type {array.dtype.name}")
    pixels = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32)) / scale
    if not torch.isfinite(pixels).all():
        raise UnreadableImage("not_finite")
    return pixels
