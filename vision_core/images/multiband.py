"""Images of any number of channels: `.npy` arrays and multi-band TIFF to float32 tensors."""

import io
import math
import zlib

import numpy as np
import torch
from torch import Tensor

from vision_core.errors import UserError
from vision_core.images.unreadable import MAX_VALUES, UnreadableImage, check_size

NPY_MAGIC = b"\x93NUMPY"
SCALES = {"uint8": 255, "uint16": 65535}
DEFLATE = (8, 32946)
# none, LZW, deflate (two numbers), PackBits: codecs whose output is bounded by the image's own size
TIFF_COMPRESSIONS = (1, 5, *DEFLATE, 32773)
REDUCED_OR_MASK = 0b101
WHITE_IS_ZERO = 0  # PhotometricInterpretation of TIFF 6.0


def decode_npy(data: bytes, num_channels: int) -> Tensor:
    """The bytes of a `.npy` file (two axes, or three with channels first or last) to float32 `[C, H, W]`; see `to_bands`."""
    stream = io.BytesIO(data)
    version = np.lib.format.read_magic(stream)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read_header(stream)
    if dtype.hasobject:
        raise UnreadableImage("python_objects")
    _check_bands(shape, dtype, num_channels)
    if math.prod(shape) * dtype.itemsize > len(data) - stream.tell():
        raise UnreadableImage("truncated")
    return to_bands(np.load(io.BytesIO(data), allow_pickle=False), num_channels)


def decode_tiff(data: bytes, num_channels: int) -> Tensor:
    """The bytes of a TIFF file to float32 `[C, H, W]`: one page with all bands, or one page for each; see `to_bands`.

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
        shape = pages[0].shape if len(pages) == 1 else (len(pages), *pages[0].shape)
        _check_bands(shape, pages[0].dtype, num_channels)
        for page in pages:
            _check_segments(page, data)
        try:
            planes = [_black_is_zero(page, num_channels) for page in pages]
        except ValueError as error:
            raise UnreadableImage("needs_imagecodecs" if "imagecodecs" in str(error) else "corrupt") from None
    return to_bands(planes[0] if len(planes) == 1 else np.stack(planes), num_channels)


def _black_is_zero(page, num_channels: int) -> np.ndarray:
    """The values of a page. One channel of a type that has a scale is inverted where the file says that white is zero."""
    values = page.asarray(maxworkers=1)
    if num_channels == 1 and page.photometric == WHITE_IS_ZERO and values.dtype.name in SCALES:
        return SCALES[values.dtype.name] - values
    return values


def to_bands(array: np.ndarray, num_channels: int) -> Tensor:
    """`[H, W]`, `[C, H, W]` or `[H, W, C]` to float32 `[C, H, W]`.

    uint8 is divided by 255 and uint16 by 65535; other integers and floats stay as they are. Raises `not_finite` for NaN and infinity.
    """
    axis = _channel_axis(array.shape, num_channels)
    bands = array[None] if axis is None else np.moveaxis(array, axis, 0)
    with np.errstate(over="ignore"):
        values = torch.from_numpy(np.ascontiguousarray(bands, dtype=np.float32)) / SCALES.get(array.dtype.name, 1)
    if not torch.isfinite(values).all():
        raise UnreadableImage("not_finite")
    return values


def _check_bands(shape: tuple[int, ...], dtype: np.dtype | None, num_channels: int) -> None:
    """Refuse by what the header says, before anything of that size is allocated."""
    if dtype is None or dtype.kind not in "uifb":
        raise UnreadableImage(f"unsupported_type {dtype}")
    axis = _channel_axis(shape, num_channels)
    height, width = shape if axis is None else (shape[1:] if axis == 0 else shape[:2])
    check_size(width, height)
    if math.prod(shape) > MAX_VALUES:
        raise UnreadableImage("too_large")


def _channel_axis(shape: tuple[int, ...], num_channels: int) -> int | None:
    """Which axis, first (0) or last (2), holds the channels; None where the only channel has no axis."""
    if len(shape) == 2 and num_channels == 1:
        return None
    if len(shape) != 3 or num_channels not in (shape[0], shape[2]):
        raise UnreadableImage(f"not_{num_channels}_channels")
    if shape[0] == shape[2]:
        raise UnreadableImage("ambiguous_channels")
    return 0 if shape[0] == num_channels else 2


def _check_segments(page, data: bytes) -> None:
    """Refuse strips and tiles that are larger than the image, or that inflate beyond their own size."""
    if page.compression not in TIFF_COMPRESSIONS:
        raise UnreadableImage(f"unsupported_compression {int(page.compression)}")
    if math.prod(page.chunks) > MAX_VALUES:
        raise UnreadableImage("too_large")
    if page.compression in DEFLATE:
        limit = math.prod(page.chunks) * page.dtype.itemsize
        for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True):
            if len(zlib.decompressobj().decompress(data[offset : offset + count], limit + 1)) > limit:
                raise UnreadableImage("corrupt")
