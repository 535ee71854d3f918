"""Turn stored numbers into pixels: fill missing values, choose channels, map the range."""

import numpy as np
import torch
from torch import Tensor

from vision_core.images.pixel_options import AS_STORED, PixelOptions, Scale
from vision_core.images.stored import Stored
from vision_core.unreadable import UnreadableImage

# ITU-R 601-2, as Pillow's "L" has it
LUMINANCE = np.array([0.299, 0.587, 0.114])
EIGHT_BITS = 255
SIXTEEN_BITS = 65535


def to_pixels(stored: Stored, num_channels: int, options: PixelOptions = AS_STORED) -> Tensor:
    """Turn an image into pixels `[num_channels, H, W]`: uint8 for 3 channels that have a known
    range, float32 for all else and wherever a scale is given.

    A missing value becomes the mean of its band over the image. One channel is repeated where three
    are asked for, and a colour becomes its luminance where one is. Without a scale, values of a
    known range are 0 for black and 1 (or 255) for white, and others stay as they are.

    Raises:
        UnreadableImage: not_3_channels, nodata_only, not_finite, and unsupported_mode for one
            channel without a known range of which three are asked.
    """
    _check_channels(stored, num_channels)
    ends = _ends(stored, options.scale)
    stored = _in_channels(_filled(stored), num_channels)
    if options.scale is not None:
        pixels = _between(stored.values, *ends)
    elif num_channels == 3 and ends is not None:
        pixels = _levels(stored.values, *ends)
    elif num_channels == 3 and len(stored.values) == 1:
        raise UnreadableImage(f"unsupported_mode {stored.values.dtype.name}")
    else:
        pixels = _as_numbers(stored.values, ends)
    return torch.from_numpy(np.ascontiguousarray(pixels)).expand(num_channels, -1, -1).contiguous()


def grey_levels(values: np.ndarray) -> np.ndarray:
    """Turn grey of 16 bits, of any shape, into uint8: divide by 257 and round."""
    levels = (values.astype(np.int64) + 128) // 257
    return levels.clip(0, 255).astype(np.uint8)


def _check_channels(stored: Stored, num_channels: int) -> None:
    found = len(stored.values)
    repeated = found == 1 and num_channels == 3
    luminance = stored.is_colour and num_channels == 1
    if not (found == num_channels or repeated or luminance):
        raise UnreadableImage(f"not_{num_channels}_channels {found} bands")


def _ends(stored: Stored, scale: Scale | None) -> tuple[float, float] | None:
    """The stored values that become 0 and 1; None where values stay as they are.

    A scale is for values without a range of their own: pictures of 8 bits keep theirs.
    """
    full_scale = stored.full_scale
    if scale is None:
        return full_scale
    has_eight_bits = stored.values.dtype.name in ("bool", "uint8")
    if has_eight_bits and full_scale is not None and max(full_scale) <= EIGHT_BITS:
        return full_scale
    if scale.kind == "full":
        return full_scale or _range_of_type(stored.values.dtype)
    is_given = scale.kind == "values"
    low, high = (scale.low, scale.high) if is_given else _percentiles(stored, scale)
    white_is_low = full_scale is not None and full_scale[0] > full_scale[1]
    return (high, low) if white_is_low else (low, high)


def _range_of_type(dtype: np.dtype) -> tuple[float, float]:
    if dtype.kind not in "iu":
        raise UnreadableImage(f"no_full_scale {dtype.name}")
    limits = np.iinfo(dtype)
    return limits.min, limits.max


def _percentiles(stored: Stored, scale: Scale) -> tuple[float, float]:
    """Two percentiles of all bands together, so that the bands keep their proportions."""
    assert scale.kind == "percentiles", "open_source replaces scale=auto by values"
    there = stored.values if stored.missing is None else stored.values[~stored.missing]
    if not there.size:
        raise UnreadableImage("nodata_only")
    low, high = np.percentile(there, [scale.low, scale.high])
    return float(low), float(high)


def _filled(stored: Stored) -> Stored:
    """Put the mean of the band in place of each missing value."""
    values = stored.values
    if stored.missing is not None:
        values = values.copy()
        for number, (band, missing) in enumerate(zip(values, stored.missing, strict=True), start=1):
            if stored.missing.all():
                raise UnreadableImage("nodata_only")
            if missing.all():
                raise UnreadableImage(f"nodata_only band {number}")
            mean = band.mean(where=~missing, dtype=np.float64)
            band[missing] = mean if values.dtype.kind == "f" else np.rint(mean)
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise UnreadableImage("not_finite")
    return stored._replace(values=values, missing=None)


def _in_channels(stored: Stored, num_channels: int) -> Stored:
    if num_channels != 1 or len(stored.values) == 1:
        return stored
    luminance = np.tensordot(LUMINANCE, stored.values.astype(np.float64), axes=1)
    return stored._replace(values=luminance[None])


def _between(values: np.ndarray, black: float, white: float) -> np.ndarray:
    """Map values to float32: 0 for black, 1 for white, clipped. Where both are the same value, all
    is black."""
    exact = _float_for(values.dtype)
    above_black = values.astype(exact) - exact(black)
    return (above_black / exact(white - black or 1)).clip(0, 1).astype(np.float32)


def _as_numbers(values: np.ndarray, ends: tuple[float, float] | None) -> np.ndarray:
    """Map values to float32: between black and white where those are known, else unchanged."""
    if ends is not None:
        return _between(values, *ends)
    with np.errstate(over="ignore"):
        numbers = values.astype(np.float32)
    if not np.isfinite(numbers).all():
        raise UnreadableImage("not_finite")
    return numbers


def _float_for(dtype: np.dtype) -> type:
    """float32 where it represents every value of the type, else float64."""
    return np.float32 if np.can_cast(dtype, np.float32) else np.float64


def _levels(values: np.ndarray, black: float, white: float) -> np.ndarray:
    """Map values to uint8, 0 for black and 255 for white, rounded. Colour of 16 bits gives its high
    byte, as Pillow does."""
    span = abs(white - black)
    if values.dtype.kind in "bu" and {black, white} == {0, span}:
        above_black = values if black == 0 else int(black) - values
        if span == EIGHT_BITS:
            return above_black.astype(np.uint8)
        if span == SIXTEEN_BITS:
            is_colour = len(values) == 3
            return (above_black >> 8).astype(np.uint8) if is_colour else grey_levels(above_black)
    shares = _between(values, black, white).astype(np.float64)
    return np.rint(shares * EIGHT_BITS).astype(np.uint8)
