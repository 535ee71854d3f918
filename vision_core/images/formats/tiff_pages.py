"""The reader of the pages of any TIFF, by the package tifffile: which of them are channels, and what
their numbers mean."""

import io
import math
import zlib
from contextlib import contextmanager
from operator import attrgetter
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image

from vision_core.errors import UserError
from vision_core.images.formats.quiet import quiet_libraries
from vision_core.images.formats.turning import turned
from vision_core.images.pixel_options import PixelOptions
from vision_core.images.stored import Stored, is_nodata
from vision_core.unreadable import UnreadableImage, check_size, check_values

REDUCED_OR_MASK = 0b101  # bits of NewSubfileType in TIFF 6.0
ORIENTATION = 274
GDAL_NODATA = 42113
ALPHAS = (1, 2)  # ExtraSamples: associated and unassociated alpha
# PhotometricInterpretation
WHITE_IS_ZERO = 0
BLACK_IS_ZERO = 1
RGB = 2
PALETTE = 3
SEPARATED = 5
YCBCR = 6
# compressions
JPEG = 7
DEFLATE = (8, 32946)
WEBP = 50001
# none, LZW, JPEG, deflate, PackBits, Zstandard, WebP: codecs whose output can be bounded by the
# image's own size
COMPRESSIONS = (1, 5, JPEG, *DEFLATE, 32773, 50000, WEBP)
# tifffile's letters of axes: a page's samples, a stack's channels, and pages of which the file says
# nothing but their number
SAMPLES = "S"
CHANNELS = "C"
UNKNOWN = ("Q", "I")


class Stack(NamedTuple):
    """How the planes of a series are divided into images.

    Attributes:
        series: of tifffile.
        planes: the numbers of the planes, `[images, planes of one image]`.
        parts: the same for people.
    """

    series: object
    planes: np.ndarray
    parts: str


class OuterAxis(NamedTuple):
    """An axis of a stack outside its pages: its place among such axes, its name for people, its
    length, and whether it counts channels rather than images."""

    place: int
    name: str
    length: int
    is_channel: bool


def read(
    data: bytes, num_channels: int, options: PixelOptions, part: int | None, colours_of_palette: bool = True
) -> Stored:
    """Read the bands of one image, upright.

    Overviews and masks are passed over. Samples of a page and axis C of a stack are channels. Pages
    of which the file does not say what they are count as channels where there are as many as asked
    for. All other axes (Z, T, ...) count images.

    colours_of_palette: whether a palette gives its colours, or the indices as they are stored.

    Raises:
        UnreadableImage: several_images, not_3_channels, unsupported_..., needs_imagecodecs,
            too_large, too_small.
        UserError: the package tifffile is missing.
    """
    with _open_tiff(io.BytesIO(data)) as file:
        stack = _stack(file, num_channels)
        images, planes = stack.planes.shape
        if part is None and images > 1:
            raise UnreadableImage(f"several_images {stack.parts}")
        page = stack.series.keyframe
        _check_page(page, options.max_pixels)
        _check_bands(page, planes, num_channels, options.max_pixels)
        numbers = [_plane(stack.series, number, data) for number in stack.planes[part or 0]]
        return _stored(page, np.concatenate(numbers), num_channels, colours_of_palette)


def count_parts(file: BinaryIO, num_channels: int) -> int:
    """Count the images of `num_channels` in a stack. Raises as `read` does."""
    with _open_tiff(file) as pages:
        return len(_stack(pages, num_channels).planes)


@contextmanager
def _open_tiff(stream: BinaryIO):
    """The file as tifffile opens it; what its decoders find wrong becomes UnreadableImage."""
    try:
        import tifffile
    except ImportError:
        raise UserError(
            "this TIFF needs the package tifffile; pip install 'vision-encoder-fusion[scientific]'"
        ) from None
    try:
        with quiet_libraries(), tifffile.TiffFile(stream) as file:
            yield file
    except tifffile.TiffFileError:
        raise UnreadableImage("unsupported_tiff") from None
    except (ValueError, NotImplementedError, ModuleNotFoundError) as error:
        # tifffile's own decoders name the package, but for Zstandard, where they lack a module of
        # Python 3.14
        needs_imagecodecs = "imagecodecs" in str(error) or isinstance(error, ModuleNotFoundError)
        raise UnreadableImage("needs_imagecodecs" if needs_imagecodecs else "corrupt") from None


def _stack(file, num_channels: int) -> Stack:
    """The only series of full resolution, divided into images and their channels."""
    series = [each for each in file.series if not each.keyframe.subfiletype & REDUCED_OR_MASK]
    if not series:
        raise UnreadableImage("unsupported_tiff")
    if len(series) > 1:
        raise UnreadableImage(f"several_images series={len(series)}")
    axes = _outer_axes(series[0], num_channels)
    image_axes = [axis for axis in axes if not axis.is_channel]
    order = [axis.place for axis in sorted(axes, key=attrgetter("is_channel"))]
    lengths = [axis.length for axis in axes]
    planes = np.arange(math.prod(lengths)).reshape(lengths).transpose(order)
    images = math.prod(axis.length for axis in image_axes)
    parts = " ".join(f"{axis.name}={axis.length}" for axis in image_axes if axis.length > 1)
    return Stack(series[0], planes.reshape(images, -1), parts)


def _outer_axes(series, num_channels: int) -> list[OuterAxis]:
    """The axes along which a series has pages; rows, columns and samples lie within a page."""
    in_a_page = "YX" if series.keyframe.samplesperpixel == 1 else "YXS"
    axes: list[OuterAxis] = []
    for letter, length in zip(series.get_axes(False), series.get_shape(False), strict=True):
        if letter not in in_a_page:
            of_grey_pages = letter in UNKNOWN and length == num_channels and SAMPLES not in in_a_page
            name = "pages" if letter in UNKNOWN else letter
            axes.append(OuterAxis(len(axes), name, length, letter in (CHANNELS, SAMPLES) or of_grey_pages))
    return axes


def _check_page(page, max_pixels: int) -> None:
    """Refuse a page of a kind or size that is not read, before anything of that size is
    allocated."""
    if page.dtype is None or page.dtype.kind not in "uifb":
        raise UnreadableImage(f"unsupported_type {page.dtype}")
    if page.axes not in ("YX", "YXS", "SYX"):
        raise UnreadableImage(f"unsupported_axes {page.axes}")
    known = page.photometric in (WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, SEPARATED)
    if not known and not (page.photometric == YCBCR and page.compression == JPEG):
        raise UnreadableImage(f"unsupported_colours {int(page.photometric)}")
    if page.compression not in COMPRESSIONS:
        raise UnreadableImage(f"unsupported_compression {int(page.compression)}")
    check_size(page.imagewidth, page.imagelength, max_pixels)
    check_values(math.prod(page.chunks), max_pixels)


def _check_bands(page, planes: int, num_channels: int, max_pixels: int) -> None:
    """Refuse bands of which no image of so many channels can be made."""
    bands = _bands_without_alpha(page, planes, num_channels)
    of_colour = page.photometric == PALETTE or (bands == 3 and _is_colour(page))
    fits = bands == num_channels
    if num_channels == 3:
        fits = fits or bands == 1
    if num_channels in (1, 3):
        fits = fits or of_colour
    if not fits:
        raise UnreadableImage(f"not_{num_channels}_channels {bands} bands")
    check_values(planes * math.prod(page.shape), max_pixels)


def _bands_without_alpha(page, planes: int, num_channels: int) -> int:
    """How many bands there are without alpha, which pictures of one and three channels do without."""
    colours = 3 if _is_colour(page) else 1
    extra = page.extrasamples
    has_alpha = len(extra) == 1 and extra[0] in ALPHAS and page.samplesperpixel == colours + 1
    is_dropped = has_alpha and num_channels in (1, 3)
    return planes * (page.samplesperpixel - is_dropped)


def _is_colour(page) -> bool:
    return page.photometric in (RGB, YCBCR)


def _plane(series, number: int, data: bytes) -> np.ndarray:
    """The samples `[S, H, W]` of page number `number`."""
    page = series.keyframe
    if series.is_truncated:
        values = _behind_the_page(page, number, data)
    else:
        own = series.pages[number]
        if own is None:
            raise UnreadableImage("unsupported_tiff missing_planes")
        _check_segments(own, page, data)
        values = _decode(own, page)
    if page.axes == "YX":
        return values[None]
    return np.moveaxis(values, page.axes.index(SAMPLES), 0)


def _decode(own, keyframe) -> np.ndarray:
    """The numbers of a page. tifffile (seen in 2026.3.3) takes planes of JPEG, each of them grey,
    for colours, and fails."""
    photometric = keyframe.photometric
    if keyframe.compression == JPEG and keyframe.axes == "SYX":
        keyframe.photometric = BLACK_IS_ZERO
    try:
        return own.asarray(maxworkers=1)
    finally:
        keyframe.photometric = photometric


def _behind_the_page(page, number: int, data: bytes) -> np.ndarray:
    """The numbers of a plane of a stack that describes one page and writes the numbers of all of them
    one after the other, as ImageJ and tifffile do."""
    dtype = page.dtype.newbyteorder(page.parent.byteorder)
    count = math.prod(page.shape)
    start = page.dataoffsets[0] + number * count * dtype.itemsize
    if start + count * dtype.itemsize > len(data):
        raise UnreadableImage("truncated")
    return np.frombuffer(data, dtype, count, start).reshape(page.shape).astype(page.dtype)


def _check_segments(page, keyframe, data: bytes) -> None:
    """Refuse strips and tiles that inflate beyond their own size: libraries would make room for
    what a header promises."""
    limit = math.prod(keyframe.chunks) * keyframe.dtype.itemsize
    if keyframe.compression in DEFLATE:
        for segment in _segments(page, data):
            if len(zlib.decompressobj().decompress(segment, limit + 1)) > limit:
                raise UnreadableImage("corrupt")
    if keyframe.compression in (JPEG, WEBP):
        height, width = keyframe.chunks[:2] if keyframe.axes == "YXS" else keyframe.chunks[-2:]
        for segment in _segments(page, data):
            found = Image.open(io.BytesIO(segment), formats=["JPEG", "WEBP"]).size
            if found[0] > width or found[1] > height:
                raise UnreadableImage("corrupt")


def _segments(page, data: bytes):
    for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True):
        if count:
            yield data[offset : offset + count]


def _stored(page, values: np.ndarray, num_channels: int, colours_of_palette: bool) -> Stored:
    nodata = page.tags.valueof(GDAL_NODATA)
    missing = None if nodata is None else is_nodata(values, float(nodata))
    takes_colours = page.photometric == PALETTE and colours_of_palette
    if takes_colours:
        values = _colours(page, values)
        full_scale = (0, 255)
    else:
        values, full_scale = _full_scale(page, values)
    count = len(values)
    if count == page.samplesperpixel:
        count = _bands_without_alpha(page, 1, num_channels)
    turn = page.tags.valueof(ORIENTATION, 1)
    if missing is not None:
        missing = turned(np.broadcast_to(missing, values.shape)[:count], turn)
    return Stored(turned(values[:count], turn), full_scale, missing, _is_colour(page) or takes_colours)


def _colours(page, indices: np.ndarray) -> np.ndarray:
    """The colours of a palette, uint8 `[3, H, W]`; TIFF 6.0 stores 16 bits of each."""
    return (page.colormap[:, indices[0]] >> 8).astype(np.uint8)


def _full_scale(page, values: np.ndarray) -> tuple[np.ndarray, tuple[float, float] | None]:
    """The values, and their black and white. Up to 16 bits without sign have a white: the largest
    number of their bits, or zero where a page has one sample and says so."""
    if values.dtype.kind == "b":
        values = values.view(np.uint8)
    if values.dtype.kind != "u" or page.bitspersample > 16:
        return values, None
    white = 2**page.bitspersample - 1
    inverted = page.photometric == WHITE_IS_ZERO and page.samplesperpixel == 1
    return values, (white, 0) if inverted else (0, white)
