"""Find the range of stored values that a scale should cover, and notes on the range in use."""

from __future__ import annotations

from collections.abc import Sequence

from vision_core.errors import UserError
from vision_core.images.pixel_options import Scale, scale_text
from vision_core.images.sampled import StoredSample, first_images, is_eight_bit, sample_stored
from vision_core.images.source import ImageSource, ImageStream

AUTO_IMAGES = 200
LOWEST_PERCENT = 0.1
HIGHEST_PERCENT = 99.9
USED_SHARE = 0.1  # a note is worth it where values use less of their full scale
EIGHT_BITS = (0.0, 255.0)

# how many images a quick look reads, and for how long
LOOK_IMAGES = 64
LOOK_SECONDS = 1.5
FIRST_IMAGES = 4
FAR = 5.0  # a band's mean is far from image_mean by more than this many times image_std
ODD_SPREAD = 10.0  # a band's std is odd above this many times image_std


def automatic_scale(source: ImageSource, name: str, count: int = AUTO_IMAGES) -> tuple[Scale, int]:
    """Find the scale that `?scale=auto` of the source `name` means, and the number of images it
    comes from; see `usual_range`.

    The scale depends on the source only: every process and every resumed run finds the same one.
    Raises UserError where there is no range.
    """
    sample = sample_stored(source, count, eight_bit=False)
    if not sample.images and not sample.unreadable:
        return Scale("values", *EIGHT_BITS), count
    if not sample.images:
        reasons = ", ".join(f"{reason} ({number})" for reason, number in sample.unreadable.most_common(3))
        raise UserError(
            f"dataset {name!r}: scale=auto found no readable image among {count}: {reasons}; "
            "give scale=LOW,HIGH"
        )
    low, high = usual_range(sample)
    if not low < high:
        raise UserError(
            f"dataset {name!r}: scale=auto found no range, its values are {low:g}; give scale=LOW,HIGH"
        )
    return Scale("values", low, high), sample.images


def usual_range(sample: StoredSample) -> tuple[float, float]:
    """Find one range for all bands, so that they keep their proportions.

    It reaches from 0, or the 0.1 percentile where that is below 0, to the 99.9 percentile, with 6
    digits. For pictures of 8 bits it is 0 to 255.
    """
    if set(sample.types) <= {"bool", "uint8"}:
        return EIGHT_BITS
    low, high = sample.percentiles((LOWEST_PERCENT, HIGHEST_PERCENT))
    return min(_six_digits(low), 0.0), _six_digits(high)


def _six_digits(value: float) -> float:
    return float(f"{value:.6g}")


def full_scale_of(sample: StoredSample) -> tuple[float, float] | None:
    """The range that the format gives as (low, high), whichever of them is black; None where it
    gives none, or several."""
    known = {scale and (min(scale), max(scale)) for scale in sample.full_scales}
    return known.pop() if len(known) == 1 else None


def used_share(sample: StoredSample) -> float | None:
    """The share of the full scale that the values use up to their 99.9 percentile; None where the
    full scale is not known."""
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
    """Look at some files of a source and note, a line each, what in them speaks against its
    options; pictures of 8 bits, scenes and streams have no notes.

    image_mean, image_std: the normalisation of the run, one number per channel.
    is_trained: whether the normalisation is that of an encoder that is judged, which cannot be
    chosen any more; nothing is augmented then either.
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
    if source.pixel_options.nodata is not None:
        return False
    first = first_images(source, FIRST_IMAGES)
    return all(is_eight_bit(stored) and stored.missing is None for stored in first)


def _has_scale(source: ImageSource) -> bool:
    return source.pixel_options.scale is not None and source.pixel_options.scale.kind != "full"


def _add_scale(sample: StoredSample) -> str:
    scale = scale_text(Scale("values", *usual_range(sample)))
    return f"add ?scale={scale} to the dataset (pretrain/data_stats.py looks closer)"


def _black_note(source: ImageSource, sample: StoredSample) -> str:
    share = used_share(sample)
    if _has_scale(source) or share is None or share >= USED_SHARE:
        return ""
    low, high = full_scale_of(sample)
    return (
        f"values use {share:.1%} of their full scale {low:,g} to {high:,g}, "
        f"so images are nearly black: {_add_scale(sample)}"
    )


def _no_colours_note(source: ImageSource, sample: StoredSample, num_channels: int) -> str:
    low, high = usual_range(sample)
    if _has_scale(source) or used_share(sample) is not None or num_channels != 3 or low >= high:
        return ""
    return (
        f"values of {_types(sample)} have no known black and white, "
        f"so colour jitter, grayscale and solarize of RGB are left out: {_add_scale(sample)}"
    )


def _mean_note(
    source: ImageSource,
    sample: StoredSample,
    image_mean: Sequence[float],
    image_std: Sequence[float],
    is_trained: bool,
) -> str:
    """Note the first band whose unscaled values lie far from their normalisation."""
    is_scaled = source.pixel_options.scale is not None or full_scale_of(sample) is not None
    if is_scaled or len(sample.bands) != len(image_mean):
        return ""
    cure = "set both as pretrain/data_stats.py proposes"
    if is_trained:
        cure = "read them as the encoder's training did, by ?scale=LOW,HIGH"
    bands = zip(sample.bands, image_mean, image_std, strict=True)
    for number, (band, mean, std) in enumerate(bands, start=1):
        if not band.count:
            continue
        is_far = abs(band.mean - mean) > FAR * std
        if is_far or band.std / std > ODD_SPREAD:
            return (
                f"values of band {number} have mean {band.mean:.4g} and std {band.std:.4g}, "
                f"far from image_mean {mean:g} and image_std {std:g}: {cure}"
            )
    return ""


def _missing_note(sample: StoredSample) -> str:
    share = sample.missing_share
    if not share:
        return ""
    return (
        f"{share:.2%} of the values are missing (nodata or NaN); "
        "each is replaced by its band's mean over the image"
    )


def _types(sample: StoredSample) -> str:
    return " and ".join(sorted(sample.types))
