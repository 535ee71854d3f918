"""Which range of stored values is worth a scale, and what a user should know about the one in
use."""

from __future__ import annotations

from collections.abc import Sequence

from vision_core.errors import UserError
from vision_core.images.pixel_options import Scale, scale_text
from vision_core.images.sampled import StoredSample, first_images, is_eight_bit, sample_stored
from vision_core.images.source import ImageSource, ImageStream

AUTO_IMAGES = 200
LOWEST_PERCENT, HIGHEST_PERCENT = 0.1, 99.9
USED_SHARE = 0.1  # of the full scale, below which the rest is worth a word
EIGHT_BITS = (0.0, 255.0)

LOOK_IMAGES, LOOK_SECONDS = 64, 1.5
FIRST_IMAGES = 4
FAR = 5.0  # stds from the mean
ODD_SPREAD = 10.0  # times


def automatic_scale(source: ImageSource, name: str, count: int = AUTO_IMAGES) -> tuple[Scale, int]:
    """What `?scale=auto` of the source `name` stands for, and from how many images; see
    `usual_range`.

    A function of the source alone: every process and every resumed run finds the same. Raises
    UserError where there is no range.
    """
    sample = sample_stored(source, count, eight_bit=False)
    if not sample.images and not sample.unreadable:
        return Scale("values", *EIGHT_BITS), count
    if not sample.images:
        reasons = ", ".join(f"{reason} ({number})" for reason, number in sample.unreadable.most_common(3))
        raise UserError(
            f"dataset {name!r}: scale=auto found no readable image among {count}: {reasons}; give scale=LOW,HIGH"
        )
    low, high = usual_range(sample)
    if not low < high:
        raise UserError(
            f"dataset {name!r}: scale=auto found no range, its values are {low:g}; give scale=LOW,HIGH"
        )
    return Scale("values", low, high), sample.images


def usual_range(sample: StoredSample) -> tuple[float, float]:
    """One range for all bands, so that they keep their proportions: from 0, or the 0.1 percentile
    where that is below 0, to the 99.9 percentile, with 6 digits. Of pictures of 8 bits it is 0 to
    255."""
    if set(sample.types) <= {"bool", "uint8"}:
        return EIGHT_BITS
    low, high = (float(f"{value:.6g}") for value in sample.percentiles((LOWEST_PERCENT, HIGHEST_PERCENT)))
    return min(low, 0.0), high


def full_scale_of(sample: StoredSample) -> tuple[float, float] | None:
    """The range that the format gives, black before white or not, as low and high; None where it
    gives none, or several."""
    known = {scale and (min(scale), max(scale)) for scale in sample.full_scales}
    return known.pop() if len(known) == 1 else None


def used_share(sample: StoredSample) -> float | None:
    """How much of the full scale the values take up to their 99.9 percentile; None where it is not
    known."""
    full = full_scale_of(sample)
    if full is None:
        return None
    _, high = sample.percentiles((LOWEST_PERCENT, HIGHEST_PERCENT))
    return (high - full[0]) / (full[1] - full[0])


def needs_scale(sample: StoredSample) -> bool:
    """Whether less than a tenth of the full scale is used, or none is known."""
    share = used_share(sample)
    return share is None or share < USED_SHARE


def range_notes(
    source: ImageSource | ImageStream,
    num_channels: int,
    image_mean: Sequence[float],
    image_std: Sequence[float],
    is_trained: bool = False,
) -> list[str]:
    """What a quick look at a source's files says against its options, a line each; nothing for
    pictures of 8 bits, scenes and streams.

    image_mean, image_std: of the run, one per channel.
    is_trained: whether they are those of an encoder that is judged, which nobody can choose any
    more; nothing is augmented then either.
    """
    if isinstance(source, ImageStream) or _all_eight_bit(source):
        return []
    sample = sample_stored(source, LOOK_IMAGES, LOOK_SECONDS)
    if not sample.images:
        return []
    found = [
        _black_note(source, sample),
        "" if is_trained else _no_colours_note(source, sample, num_channels),
        _mean_note(source, sample, image_mean, image_std, is_trained),
        _missing_note(sample),
    ]
    return [note for note in found if note]


def _all_eight_bit(source: ImageSource) -> bool:
    return source.pixel_options.nodata is None and all(
        is_eight_bit(stored) and stored.missing is None for stored in first_images(source, FIRST_IMAGES)
    )


def _has_scale(source: ImageSource) -> bool:
    return source.pixel_options.scale is not None and source.pixel_options.scale.kind != "full"


def _add_scale(sample: StoredSample) -> str:
    scale = scale_text(Scale("values", *usual_range(sample)))
    return f"add ?scale={scale} to the dataset (pretrain/data_stats.py looks closer)"


def _black_note(source: ImageSource, sample: StoredSample) -> str:
    share = used_share(sample)
    if _has_scale(source) or share is None or share >= USED_SHARE:
        return ""
    full = full_scale_of(sample)
    return f"values use {share:.1%} of their full scale {full[0]:,g} to {full[1]:,g}, so images are nearly black: {_add_scale(sample)}"


def _no_colours_note(source: ImageSource, sample: StoredSample, num_channels: int) -> str:
    low, high = usual_range(sample)
    if _has_scale(source) or used_share(sample) is not None or num_channels != 3 or low >= high:
        return ""
    return (
        f"values of {_types(sample)} have no known black and white, so colour jitter, grayscale and solarize of RGB are left out: "
        f"{_add_scale(sample)}"
    )


def _mean_note(
    source: ImageSource,
    sample: StoredSample,
    image_mean: Sequence[float],
    image_std: Sequence[float],
    is_trained: bool,
) -> str:
    """Where values that stay as they are lie far from what they are normalised by."""
    if (
        source.pixel_options.scale is not None
        or full_scale_of(sample) is not None
        or len(sample.bands) != len(image_mean)
    ):
        return ""
    cure = (
        "read them as the encoder's training did, by ?scale=LOW,HIGH"
        if is_trained
        else "set both as pretrain/data_stats.py proposes"
    )
    for number, (band, mean, std) in enumerate(
        zip(sample.bands, image_mean, image_std, strict=True), start=1
    ):
        if not band.count:
            continue
        spread = band.std / std
        if abs(band.mean - mean) > FAR * std or spread > ODD_SPREAD:
            return (
                f"values of band {number} have mean {band.mean:.4g} and std {band.std:.4g}, far from image_mean {mean:g} and image_std {std:g}: "
                f"{cure}"
            )
    return ""


def _missing_note(sample: StoredSample) -> str:
    share = sample.missing_share
    return (
        f"{share:.2%} of the values are missing (nodata or NaN); each is replaced by its band's mean over the image"
        if share
        else ""
    )


def _types(sample: StoredSample) -> str:
    return " and ".join(sorted(sample.types))
