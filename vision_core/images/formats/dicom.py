"""The reader of DICOM: frames as physical values, with the window that the file asks for (pydicom
reads the files)."""

from __future__ import annotations

import io
from typing import BinaryIO, NamedTuple

import numpy as np

from vision_core.errors import UserError
from vision_core.images.formats.optional_packages import PYDICOM
from vision_core.images.pixel_options import PixelOptions
from vision_core.images.stored import Stored, part_to_read
from vision_core.unreadable import UnreadableImage, check_size

GREY = ("MONOCHROME1", "MONOCHROME2")
COLOURS = ("RGB", "PALETTE COLOR", "YBR_FULL", "YBR_FULL_422", "YBR_PARTIAL_420", "YBR_ICT", "YBR_RCT")
MOST_BITS = 32
# The file meta group (PS3.10 7.1) begins with 128 bytes, DICM, and an element of 12 bytes, at whose
# end the length of the rest is found.
META_LENGTH_AT = 140
META_AT = 144
MOST_META_BYTES = 2**16
# PS3.5 A.5; pydicom would inflate all of it, however large it becomes
DEFLATED = b"1.2.840.10008.1.2.1.99"
# a window of width 1 is a threshold
NARROWEST = 1e-3
PER_FRAME = "PerFrameFunctionalGroupsSequence"
SHARED = "SharedFunctionalGroupsSequence"
PADDING = "PixelPaddingValue"
PADDING_END = "PixelPaddingRangeLimit"


class Levels(NamedTuple):
    """Values of a frame `[H, W]`, and which of them are black and white; None for floats without a
    range."""

    values: np.ndarray
    full_scale: tuple[float, float] | None


def count_parts(file: BinaryIO, num_channels: int) -> int:
    """Count the frames of a file; 0 for a report, a directory and others without pixels. Raises
    UnreadableImage."""
    return _count(_header(file))


def read(data: bytes, num_channels: int, options: PixelOptions, part: int | None) -> Stored:
    """Read one frame, after the modality LUT or rescale slope and intercept.

    `full_scale` is the file's first window, or VOI LUT; where a scale is given or the file has
    neither, it is the full range of BitsStored in physical values. For MONOCHROME1 its ends are
    exchanged. Palette and YBR become RGB. PixelPaddingValue is missing.

    Raises:
        UnreadableImage: several_images without `part`, no_pixels, not a size or type that is read,
            a compression that needs a package.
        UserError: pydicom is not installed.
    """
    header = _header(io.BytesIO(data))
    frame_number = part_to_read(part, _count(header))
    _check_header(header, options.max_pixels)
    frame = _frame(data, frame_number)
    if header.PhotometricInterpretation in GREY:
        return _grey(frame, header, frame_number, windowed=options.scale is None)
    return _colour(frame, header)


def _pydicom():
    try:
        import pydicom
    except ImportError:
        raise UserError(PYDICOM.cure) from None
    return pydicom


def _header(file: BinaryIO):
    """Read everything before the pixels."""
    head = file.read(META_AT + MOST_META_BYTES)
    length = int.from_bytes(head[META_LENGTH_AT:META_AT], "little")
    if DEFLATED in head[META_AT : META_AT + length]:
        raise UnreadableImage("unsupported_dicom deflated")
    file.seek(0)
    try:
        return _pydicom().dcmread(file, stop_before_pixels=True)
    except (UserError, MemoryError):
        raise
    except Exception:  # pydicom raises a dozen types on bad bytes
        raise UnreadableImage("corrupt") from None


def _count(header) -> int:
    if "Rows" not in header or "Columns" not in header:
        return 0
    frames = str(header.get("NumberOfFrames") or 1)
    if not (frames.isascii() and frames.isdigit()):
        raise UnreadableImage("corrupt")
    return int(frames)


def _check_header(header, max_pixels: int) -> None:
    check_size(int(header.Columns), int(header.Rows), max_pixels)
    samples = int(header.get("SamplesPerPixel", 1))
    bits = int(header.get("BitsAllocated", 8))
    if samples not in (1, 3) or bits > MOST_BITS:
        raise UnreadableImage("unsupported_dicom samples")
    photometric = header.get("PhotometricInterpretation")
    if photometric not in (*GREY, *COLOURS):
        raise UnreadableImage(f"unsupported_dicom {photometric}")


def _frame(data: bytes, part: int) -> np.ndarray:
    """A frame `[H, W]` or `[H, W, 3]` as it is stored; YBR has become RGB."""
    try:
        frame = _pydicom().pixels.pixel_array(io.BytesIO(data), index=part)
    except (UserError, MemoryError):
        raise
    except NotImplementedError:
        raise UnreadableImage("unsupported_dicom compression") from None
    except Exception as error:  # pydicom raises a dozen types on bad bytes
        lacks_decoder = any(words in str(error) for words in ("missing dependencies", "does not support"))
        raise UnreadableImage("needs_pylibjpeg" if lacks_decoder else "corrupt") from None
    return frame.astype(frame.dtype.newbyteorder("="), copy=False)


def _grey(frame: np.ndarray, header, part: int, windowed: bool) -> Stored:
    """A frame of grey as physical values; `windowed` gives it the range of the file's window, where
    there is one."""
    missing = _padding(frame, header)
    levels = _physical(frame, header, part)
    window = _window(levels.values, header, part) if windowed else None
    values, full_scale = levels if window is None else window
    if full_scale is not None and header.PhotometricInterpretation == "MONOCHROME1":
        full_scale = full_scale[::-1]
    return Stored(values[None], full_scale, None if missing is None else missing[None])


def _padding(frame: np.ndarray, header) -> np.ndarray | None:
    """Where the file says that there is no value (PS3.3 C.7.5.1.1.2), in stored values."""
    if PADDING not in header:
        return None
    ends = sorted((float(header[PADDING].value), float(header.get(PADDING_END, header[PADDING].value))))
    missing = (frame >= ends[0]) & (frame <= ends[1])
    return missing if missing.any() else None


def _physical(frame: np.ndarray, header, part: int) -> Levels:
    """After the modality transformation (PS3.3 C.11.1), which of a file with many frames may be
    each frame's own."""
    if header.get("ModalityLUTSequence"):
        values = _pydicom().pixels.apply_modality_lut(frame, header)
        return Levels(values, _range_of_table(header.ModalityLUTSequence[0]))
    stored_range = _range_of_bits(header)
    place = _of_frame(header, part, "PixelValueTransformationSequence")
    if "RescaleSlope" not in place or "RescaleIntercept" not in place:
        return Levels(frame, stored_range)
    slope, intercept = float(place.RescaleSlope), float(place.RescaleIntercept)
    values = (frame.astype(np.float64) * slope + intercept).astype(np.float32)
    if stored_range is None:
        return Levels(values, None)
    low, high = sorted(end * slope + intercept for end in stored_range)
    return Levels(values, (low, high))


def _range_of_bits(header) -> tuple[float, float] | None:
    if "BitsStored" not in header:
        return None
    bits = int(header.BitsStored)
    if header.get("PixelRepresentation") == 1:
        return -(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1
    return 0.0, 2.0**bits - 1


def _range_of_table(table) -> tuple[float, float]:
    """The third number of a table's descriptor is the bits of its entries."""
    return 0.0, 2.0 ** int(table.LUTDescriptor[2]) - 1


def _window(values: np.ndarray, header, part: int) -> Levels | None:
    """The first VOI LUT or window (PS3.3 C.11.2). A linear window is a range of the physical
    values; the others make new values."""
    if header.get("VOILUTSequence"):
        numbers = np.rint(values).astype(np.int64)
        return Levels(_pydicom().pixels.apply_voi(numbers, header), _range_of_table(header.VOILUTSequence[0]))
    place = _of_frame(header, part, "FrameVOILUTSequence")
    if place.get("WindowCenter") is None or place.get("WindowWidth") is None:
        return None
    center, width = _first(place.WindowCenter), _first(place.WindowWidth)
    function = str(place.get("VOILUTFunction") or "LINEAR").upper()
    if width <= 0 or (function == "LINEAR" and width < 1):
        return None
    if function == "SIGMOID":
        sigmoid = 1 / (1 + np.exp(-4 * (values.astype(np.float64) - center) / width))
        return Levels(sigmoid.astype(np.float32), (0.0, 1.0))
    if function == "LINEAR":
        center, width = center - 0.5, max(width - 1, NARROWEST)
    return Levels(values, (center - width / 2, center + width / 2))


def _of_frame(header, part: int, group: str):
    """The data set that holds a frame's attributes: its functional group, the one that all frames
    share, or the file itself."""
    for sequence, number in ((PER_FRAME, part), (SHARED, 0)):
        items = header.get(sequence) or []
        if number < len(items) and items[number].get(group):
            return items[number][group].value[0]
    return header


def _first(value) -> float:
    """Of several windows the first."""
    return float(value if isinstance(value, str | int | float) else value[0])


def _colour(frame: np.ndarray, header) -> Stored:
    bits = int(header.BitsStored)
    if header.PhotometricInterpretation == "PALETTE COLOR":
        frame = _pydicom().pixels.apply_color_lut(frame, header)
        bits = 8 * frame.dtype.itemsize
    return Stored(np.moveaxis(frame, -1, 0), (0.0, 2.0**bits - 1), is_colour=True)
