"""What the files of a source hold, from a seeded sample of its images: the numbers as they are
stored, not yet pixels."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vision_core.images.pixels import LUMINANCE
from vision_core.images.source import ImageSource
from vision_core.images.stored import Stored
from vision_core.randomness import numpy_generator
from vision_core.unreadable import UnreadableImage

MOST_KEPT_VALUES = 2**24  # for percentiles, of all images together


@dataclass
class StoredSample:
    """What was found in some images. Numbers per band are of the values that are there; of types
    alike.

    Attributes:
        images: how many were read. unreadable: how many were not, by reason. types: images by type.
            sizes: images by (height, width).
        full_scales: images by the range that their format gives, or None.
        bands: statistics of every band.
        kept: `[C]` arrays for percentiles: all values, or an even grid of those of large images.
        bits: of unsigned whole numbers, which bits are set in any of them; None where there are
            other numbers.
    """

    images: int = 0
    unreadable: Counter[str] = field(default_factory=Counter)
    types: Counter[str] = field(default_factory=Counter)
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    full_scales: Counter[tuple[float, float] | None] = field(default_factory=Counter)
    bands: list[BandStatistics] = field(default_factory=list)
    kept: list[list[np.ndarray]] = field(default_factory=list)
    bits: list[int] | None = field(default_factory=list)

    def add(self, stored: Stored, most_pixels: int) -> None:
        """Take in an image; of its pixels at most about `most_pixels`, evenly spaced, are kept for
        percentiles."""
        channels, height, width = stored.values.shape
        if not self.images:
            self.bands = [BandStatistics() for _ in range(channels)]
            self.kept = [[] for _ in range(channels)]
            self.bits = [0] * channels
        self.images += 1
        self.types[stored.values.dtype.name] += 1
        self.sizes[height, width] += 1
        self.full_scales[stored.full_scale] += 1
        is_unsigned = stored.values.dtype.kind in "bu"
        self.bits = self.bits if is_unsigned else None
        step = max(int(np.ceil(np.sqrt(height * width / most_pixels))), 1)
        for number, band in enumerate(stored.values):
            there = None if stored.missing is None else ~stored.missing[number]
            self.bands[number].add(band, there)
            if self.bits is not None:
                self.bits[number] |= int(np.bitwise_or.reduce(band, axis=None))
            grid = (slice(None, None, step), slice(None, None, step))
            self.kept[number].append(band[grid].ravel() if there is None else band[grid][there[grid]])

    def percentiles(self, shares: Sequence[float], band: int | None = None) -> list[float]:
        """The values below which these percent of a band's values lie, linearly between two of
        them; without a band, of all bands together."""
        chosen = self.kept if band is None else [self.kept[band]]
        values = [part for parts in chosen for part in parts if part.size]
        return (
            [float("nan")] * len(shares)
            if not values
            else np.percentile(np.concatenate(values), shares).tolist()
        )

    @property
    def missing_share(self) -> float:
        """Of all values."""
        total = sum(band.count + band.missing for band in self.bands)
        return sum(band.missing for band in self.bands) / total if total else 0.0


@dataclass
class BandStatistics:
    """Least, greatest, mean and variance of values that arrive in parts, in float64 (Chan, Golub
    and LeVeque 1979)."""

    count: int = 0
    missing: int = 0
    least: float = float("inf")
    greatest: float = float("-inf")
    mean: float = 0.0
    squares: float = 0.0  # sum of squared differences from the mean

    def add(self, band: np.ndarray, there: np.ndarray | None = None) -> None:
        """`[H, W]` values, those that are `there`; infinite ones are not counted."""
        values = band.ravel() if there is None else band[there]
        self.missing += band.size - values.size
        if values.dtype.kind == "f":
            values = values[np.isfinite(values)]
        if not values.size:
            return
        values = values.astype(np.float64)
        count, mean = values.size, float(values.mean())
        squares = float(np.square(values - mean).sum())
        difference, total = mean - self.mean, self.count + count
        self.squares += squares + difference**2 * self.count * count / total
        self.mean += difference * count / total
        self.count = total
        self.least, self.greatest = (
            min(self.least, float(values.min())),
            max(self.greatest, float(values.max())),
        )

    @property
    def std(self) -> float:
        """Of the population."""
        return float(np.sqrt(self.squares / self.count)) if self.count else float("nan")


def sample_indices(length: int, count: int) -> list[int]:
    """`count` different images of a source, or all of a smaller one; the same ones wherever this is
    asked."""
    return numpy_generator("sample of stored values").permutation(length)[:count].tolist()


def sample_stored(
    source: ImageSource,
    count: int,
    seconds: float = float("inf"),
    progress: Any = iter,
    eight_bit: bool = True,
) -> StoredSample:
    """Up to `count` images of a source, in a fixed seeded order; no new one is begun after
    `seconds`.

    progress: wraps the order. eight_bit: whether pictures of 8 bits count, which keep their own
    range whatever the scale.
    """
    sample, started = StoredSample(), time.monotonic()
    indices = sample_indices(len(source), count)
    for index in progress(indices):
        if time.monotonic() - started > seconds:
            break
        try:
            stored = stored_of(source, index)
        except UnreadableImage as error:
            sample.unreadable[error.reason] += 1
            continue
        if eight_bit or not is_eight_bit(stored):
            sample.add(stored, max(MOST_KEPT_VALUES // (len(indices) * len(stored.values)), 1))
    return sample


def stored_of(source: ImageSource, index: int) -> Stored:
    """The numbers of image `index`, in as many channels as the source's images have. Raises
    UnreadableImage."""
    return in_channels(source.stored(index), source.pixel_options.image_channels(source.num_channels))


def in_channels(stored: Stored, num_channels: int) -> Stored:
    """The numbers in as many channels as the pixels will have: one repeated, the luminance of a
    colour rounded to its type."""
    values, missing = stored.values, stored.missing
    if len(values) == num_channels:
        return stored
    if len(values) == 1:
        shape = (num_channels, *values.shape[1:])
        repeated = None if missing is None else np.broadcast_to(missing, shape)
        return stored._replace(values=np.broadcast_to(values, shape), missing=repeated)
    grey = np.tensordot(LUMINANCE, values.astype(np.float64), axes=1)[None]
    grey = np.rint(grey).astype(values.dtype) if values.dtype.kind in "biu" else grey
    return stored._replace(
        values=grey, missing=None if missing is None else missing.any(0, keepdims=True), is_colour=False
    )


def is_eight_bit(stored: Stored) -> bool:
    """Whether these are values of a picture of 8 bits, whose black and white nobody has to ask
    about."""
    return stored.values.dtype.name in ("bool", "uint8") and stored.full_scale is not None


def first_images(source: ImageSource, count: int) -> Iterator[Stored]:
    """The readable ones among the first `count` of the sample."""
    for index in sample_indices(len(source), count):
        try:
            yield stored_of(source, index)
        except UnreadableImage:
            continue
