"""Measures what numbers the images of a source hold, band by band, and proposes the options that suit
them: `?scale=`, --image_mean, --image_std.

    python pretrain/data_stats.py --dataset folder:$DATA/plates --num_channels 1
"""

import sys
from pathlib import Path

# A script's own folder is first on sys.path; the packages lie beside it.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from dataclasses import dataclass, replace

from vision_core.arguments import option, parse_arguments
from vision_core.errors import UserError, run_script
from vision_core.start import look_first


@dataclass
class DataStatsArguments:
    """Looks at a fixed sample of a source's images; trains and writes nothing."""

    dataset: str = option(
        "scenes?size=64", "images: folder, list:, parquet:, hf:, wds:, scenes (see docs/data.md)", "data"
    )
    num_channels: int = option(3, "channels of the images", "data")
    max_samples: int = option(200, "images to look at, the same ones every time", "data")

    def __post_init__(self) -> None:
        if self.max_samples < 1:
            raise UserError(f"--max_samples {self.max_samples} must be above 0")


if __name__ == "__main__":
    look_first(DataStatsArguments, __doc__, loading="torch")

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial

from tqdm import tqdm

from vision_core.images.open_source import open_source, parse_source
from vision_core.images.pixel_options import PixelOptions, Scale, scale_text
from vision_core.images.pixels import to_pixels
from vision_core.images.ranges import full_scale_of, needs_scale, used_share, usual_range
from vision_core.images.sampled import BandStatistics, StoredSample, sample_indices, sample_stored, stored_of
from vision_core.images.source import ImageSource
from vision_core.printable import say
from vision_core.unreadable import UnreadableImage

MOST_NAMED = 4  # sizes, reasons
EIGHT_BITS = 255


def main() -> None:
    """Read the options, look, print."""
    args = parse_arguments(DataStatsArguments, description=__doc__)
    say(report(args.dataset, args.num_channels, args.max_samples))


def report(text: str, num_channels: int, samples: int) -> str:
    """One screen about the source `text`. Raises UserError for a stream, and where no image of the
    sample can be read."""
    source = open_source(text, num_channels)
    if not isinstance(source, ImageSource):
        raise UserError(
            f"{text} is a stream, which has no samples; leave out streaming=true, or name its files by parquet:"
        )
    sample = sample_stored(
        source, samples, progress=partial(tqdm, desc="reading images", unit="image", leave=False)
    )
    if not sample.images:
        raise UserError(
            f"none of {sum(sample.unreadable.values())} images of {source.description} could be read: "
            f"{_counts(sample.unreadable)}"
        )
    proposed = proposed_options(source, sample)
    pixels = pixel_statistics(source, samples, proposed)
    lines = [*_about(source, sample), "", *band_table(sample), ""]
    lines += _proposal(text, source, sample, proposed, pixels)
    return "\n".join(lines)


def proposed_options(source: ImageSource, sample: StoredSample) -> PixelOptions:
    """The options of the source, with a scale where it has none and less than a tenth of the full
    scale is used, or none is known."""
    options = source.pixel_options
    low, high = usual_range(sample)
    if options.scale is not None or not needs_scale(sample) or not low < high:
        return options
    return replace(options, scale=Scale("values", low, high))


def pixel_statistics(source: ImageSource, samples: int, options: PixelOptions) -> list[BandStatistics]:
    """Mean and std per channel of the pixels that training would make of the sample; pictures of 0
    to 255 as 0..1."""
    bands: list[BandStatistics] = []
    for index in tqdm(
        sample_indices(len(source), samples), desc="measuring pixels", unit="image", leave=False
    ):
        try:
            stored = stored_of(source, index)
            image = to_pixels(stored, len(stored.values), options).numpy()
        except UnreadableImage:
            continue
        bands = bands or [BandStatistics() for _ in image]
        for band, values in zip(bands, image, strict=True):
            band.add(values / EIGHT_BITS if values.dtype.name == "uint8" else values)
    return bands


def band_table(sample: StoredSample) -> list[str]:
    """The stored values of every band: least, 1st percentile, mean, 99th percentile, greatest, std,
    bits in use, missing."""
    rows = [["band", "least", "1 %", "mean", "99 %", "greatest", "std", "bits", "missing"]]
    for number in range(len(sample.bands)):
        rows.append(_band_row(sample, number))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append("  ".join(cells))
    return lines


def _band_row(sample: StoredSample, number: int) -> list[str]:
    band = sample.bands[number]
    low, high = sample.percentiles((1, 99), number)
    numbers = [_number(value) for value in (band.least, low, band.mean, high, band.greatest, band.std)]
    missing = band.missing / max(band.missing + band.count, 1)
    return [str(number + 1), *numbers, bits_in_use(sample, number), f"{missing:.2%}"]


def bits_in_use(sample: StoredSample, number: int) -> str:
    """How many bits there are from the lowest to the highest that is set in any value: 12 for
    0..4095, also where they are stored times 16."""
    if sample.bits is None:
        return "-"
    together = sample.bits[number]
    lowest = (together & -together).bit_length() - 1 if together else 0
    return str(together.bit_length() - lowest)


def _about(source: ImageSource, sample: StoredSample) -> list[str]:
    tried = sample.images + sum(sample.unreadable.values())
    unreadable = sum(sample.unreadable.values()) / tried
    reasons = f" ({_counts(sample.unreadable)})" if sample.unreadable else ""
    full = full_scale_of(sample)
    scale = "unknown: the files do not say what is black and white"
    if full is not None:
        scale = f"{full[0]:,g} to {full[1]:,g}, {used_share(sample):.1%} used"
    sizes = {f"{height} x {width}": count for (height, width), count in sample.sizes.most_common()}
    return [
        f"images      {source.description}",
        f"sample      {sample.images} read, {unreadable:.1%} unreadable{reasons}",
        f"sizes       height x width: {_counts(sizes)}",
        f"types       {_counts(sample.types)}; full scale {scale}",
        f"missing     {sample.missing_share:.2%} of the values (nodata or NaN)",
    ]


def _proposal(
    text: str,
    source: ImageSource,
    sample: StoredSample,
    options: PixelOptions,
    pixels: Sequence[BandStatistics],
) -> list[str]:
    """The options to paste; mean and std are of the pixels that those options make."""
    clipped: list[str] = []
    if options != source.pixel_options:
        text = with_option(text, f"scale={scale_text(options.scale)}")
        widest = replace(options.scale, high=whole_range(sample))
        clipped = [
            f"  values above {_number(options.scale.high)} (0.1 %) become white; "
            f"?scale={scale_text(widest)} keeps all apart"
        ]
    means = " ".join(f"{band.mean:.4g}" for band in pixels)
    stds = " ".join(f"{band.std:.4g}" for band in pixels)
    return [
        "to paste, mean and std of the pixels that it gives:",
        f'  --dataset "{text}" --num_channels {len(pixels)} \\',
        f"  --image_mean {means} --image_std {stds}",
        *clipped,
        *_flat_bands(pixels),
    ]


def _flat_bands(pixels: Sequence[BandStatistics]) -> list[str]:
    """A line about bands whose std is 0, where there are any."""
    flat = [str(number) for number, band in enumerate(pixels, start=1) if not band.std > 0]
    if not flat:
        return []
    return [
        f"  but band {', '.join(flat)} has one value only; leave it out by ?bands=, "
        "an image_std of 0 is refused"
    ]


def whole_range(sample: StoredSample) -> float:
    """White for a scale that clips nothing: the greatest value of the bits that are in use, such as
    4095, else the greatest value."""
    if sample.bits:
        return float(2 ** max(bits.bit_length() for bits in sample.bits) - 1)
    greatest = max(band.greatest for band in sample.bands)
    if greatest <= 0:
        return greatest
    unit = 10.0 ** (math.floor(math.log10(greatest)) - 5)  # of the sixth digit, rounded up
    return float(f"{math.ceil(greatest / unit) * unit:.6g}")


def with_option(text: str, added: str) -> str:
    """A source's text with one option more."""
    has_options = bool(parse_source(text)[2])
    return f"{text}{'&' if has_options else '?'}{added}"


def _counts(counts: Mapping[str, int]) -> str:
    """The most frequent names, each with its count, and how many others there are."""
    ordered = Counter(counts).most_common()
    text = ", ".join(f"{name} ({count})" for name, count in ordered[:MOST_NAMED])
    if len(ordered) > MOST_NAMED:
        text += f" and {len(ordered) - MOST_NAMED} more"
    return text


def _number(value: float) -> str:
    """A number for people, "-" where there is none."""
    if not math.isfinite(value):
        return "-"
    is_short_whole = value == int(value) and abs(value) < 1e7
    return f"{value:,.0f}" if is_short_whole else f"{value:,.5g}"


if __name__ == "__main__":
    run_script(main)
