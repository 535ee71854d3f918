"""Statistics of the numbers that the files of a source store, from a seeded sample of its images."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
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
    """Statistics of some images. Those of a band leave out missing values.

    Attributes:
        images: the number of images that were read.
        unreadable: the number of images that could not be read, by reason.
        types: the number of images by type of their values.
        sizes: the number of images by (height, width).
        full_scales: the number of images by the range that their format gives, or None.
        bands: statistics of every band.
        kept: for every band the arrays for percentiles: all values of an image, or an even grid of
            the values of a large one.
        bits: for every band the bits that are set in any of its unsigned whole numbers; None where
            an image has other numbers.
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
        """Add an image; about `most_pixels` of its pixels at most, evenly spaced, are kept for
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
        if stored.values.dtype.kind not in "bu":
            self.bits = None
        step = max(int(np.ceil(np.sqrt(height * width / most_pixels))), 1)
        for number, band in enumerate(stored.values):
            there = None if stored.missing is None else ~stored.missing[number]
            self._add_band(number, band, there, step)

    def _add_band(self, number: int, band: np.ndarray, there: np.ndarray | None, step: int) -> None:
        """Add one band `[H, W]`; every `step`-th row and column is kept for percentiles."""
        self.bands[number].add(band, there)
        if self.bits is not None:
            self.bits[number] |= int(np.bitwise_or.reduce(band, axis=None))
        grid = band[::step, ::step]
        values = grid.ravel() if there is None else grid[there[::step, ::step]]
        self.kept[number].append(values)

    def percentiles(self, shares: Sequence[float], band: int | None = None) -> list[float]:
        """The percentiles of a band's values, or of all bands together, interpolated linearly."""
        chosen = self.kept if band is None else [self.kept[band]]
        values = [part for part in chain.from_iterable(chosen) if part.size]
        if not values:
            return [float("nan")] * len(shares)
        return np.percentile(np.concatenate(values), shares).tolist()

    @property
    def missing_share(self) -> float:
        """The share of all values that are missing."""
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
        """Add the values of a band `[H, W]` that are `there`; infinite ones are not counted."""
        values = band.ravel() if there is None else band[there]
        self.missing += band.size - values.size
        if values.dtype.kind == "f":
            values = values[np.isfinite(values)]
        if not values.size:
            return
        values = values.astype(np.float64)
        count = values.size
        mean = float(values.mean())
        squares = float(np.square(values - mean).sum())
        difference = mean - self.mean
        total = self.count + count
        self.squares += squares + difference**2 * self.count * count / total
        self.mean += difference * count / total
        self.count = total
        self.least = min(self.least, float(values.min()))
        self.greatest = max(self.greatest, float(values.max()))

    @property
    def std(self) -> float:
        """The standard deviation of the population."""
        return float(np.sqrt(self.squares / self.count)) if self.count else float("nan")


def sample_indices(length: int, count: int) -> list[int]:
    """The numbers of `count` different images of a source, or of all images of a smaller one; every
    call gives the same ones."""
    return numpy_generator("sample of stored values").permutation(length)[:count].tolist()


def sample_stored(
    source: ImageSource,
    count: int,
    seconds: float = float("inf"),
    progress: Any = iter,
    eight_bit: bool = True,
) -> StoredSample:
    """Take statistics of up to `count` images of a source, in a fixed seeded order; no new image is
    begun after `seconds`.

    progress: wraps the order.
    eight_bit: whether pictures of 8 bits count, which keep their own range whatever the scale.
    """
    sample = StoredSample()
    started = time.monotonic()
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
            most_pixels = MOST_KEPT_VALUES // (len(indices) * len(stored.values))
            sample.add(stored, max(most_pixels, 1))
    return sample


def stored_of(source: ImageSource, index: int) -> Stored:
    """Read the numbers of image `index`, in as many channels as the source's images have. Raises
    UnreadableImage."""
    num_channels = source.pixel_options.image_channels(source.num_channels)
    return in_channels(source.stored(index), num_channels)


def in_channels(stored: Stored, num_channels: int) -> Stored:
    """Bring the numbers into as many channels as the pixels will have: one channel is repeated, and
    a colour becomes its luminance, rounded to its type."""
    values = stored.values
    missing = stored.missing
    if len(values) == num_channels:
        return stored
    if len(values) == 1:
        shape = (num_channels, *values.shape[1:])
        repeated = None if missing is None else np.broadcast_to(missing, shape)
        return stored._replace(values=np.broadcast_to(values, shape), missing=repeated)
    grey = np.tensordot(LUMINANCE, values.astype(np.float64), axes=1)[None]
    if values.dtype.kind in "biu":
        grey = np.rint(grey).astype(values.dtype)
    if missing is not None:
        missing = missing.any(0, keepdims=True)
    return stored._replace(values=grey, missing=missing, is_colour=False)


def is_eight_bit(stored: Stored) -> bool:
    """Whether these are values of a picture of 8 bits, whose black and white are known."""
    return stored.values.dtype.name in ("bool", "uint8") and stored.full_scale is not None


def first_images(source: ImageSource, count: int) -> Iterator[Stored]:
    """The readable images among the first `count` of the sample."""
    for index in sample_indices(len(source), count):
        try:
            yield stored_of(source, index)
        except UnreadableImage:
            continue
