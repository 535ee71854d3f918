"""The options scale, nodata, bands and max_pixels of a source: how its stored numbers become
pixels."""

from dataclasses import dataclass
from typing import Literal

from vision_core.errors import UserError
from vision_core.unreadable import MAX_PIXELS

PIXEL_OPTIONS = ("scale", "nodata", "bands", "max_pixels")
# Pillow refuses larger ones by itself
MOST_PIXELS = 178_956_970


@dataclass(frozen=True)
class Scale:
    """Which stored values become 0 and 1.

    kind: what low and high are.
        values: they are stored values.
        percentiles: they are percentiles of each image by itself.
        auto: they are unused; `open_source` replaces this kind by values from samples.
        full: they are unused; the file's type or header gives the range.
    """

    kind: Literal["values", "percentiles", "auto", "full"]
    low: float = 0.0
    high: float = 0.0


@dataclass(frozen=True)
class PixelOptions:
    """How stored numbers become pixels.

    scale: None leaves values as they are documented for their format.
    nodata: the stored value that marks a missing one, or None.
    bands: which bands of a file are taken, in this order, counted from 1; None takes all.
    bands_of: how many bands the file has, where `bands` is given.
    """

    scale: Scale | None = None
    nodata: float | None = None
    max_pixels: int = MAX_PIXELS
    bands: tuple[int, ...] | None = None
    bands_of: int = 0

    def file_channels(self, num_channels: int) -> int:
        """The number of channels of a file whose images have `num_channels`."""
        return num_channels if self.bands is None else self.bands_of

    def image_channels(self, file_channels: int) -> int:
        """The number of channels that are taken of a file with `file_channels`."""
        return file_channels if self.bands is None else len(self.bands)


AS_STORED = PixelOptions()


def take_pixel_options(text: str, options: dict[str, str]) -> tuple[PixelOptions, dict[str, str]]:
    """Split the options of the source `text` into pixel options and the others. Raises UserError for
    a value that is not possible."""
    others = {name: value for name, value in options.items() if name not in PIXEL_OPTIONS}
    scale = _scale(text, options["scale"]) if "scale" in options else None
    nodata = _number(text, "nodata", options["nodata"]) if "nodata" in options else None
    max_pixels = _max_pixels(text, options["max_pixels"]) if "max_pixels" in options else MAX_PIXELS
    bands, bands_of = _bands(text, options["bands"]) if "bands" in options else (None, 0)
    return PixelOptions(scale, nodata, max_pixels, bands, bands_of), others


def pixel_options_text(options: PixelOptions) -> str:
    """Write options as `take_pixel_options` reads them: `scale=4012&nodata=-9999`, or nothing where
    none is set."""
    parts = []
    if options.scale is not None:
        parts.append(f"scale={scale_text(options.scale)}")
    if options.nodata is not None:
        parts.append(f"nodata={_shortest(options.nodata)}")
    if options.bands is not None:
        parts.append(f"bands={','.join(map(str, options.bands))}/{options.bands_of}")
    if options.max_pixels != MAX_PIXELS:
        parts.append(f"max_pixels={options.max_pixels}")
    return "&".join(parts)


def read_pixel_options(text: str) -> PixelOptions:
    """The inverse of `pixel_options_text`. Raises UserError for what it does not write."""
    values: dict[str, str] = {}
    for part in text.split("&"):
        if part:
            name, _, value = part.partition("=")
            values[name] = value
    options, others = take_pixel_options(text, values)
    if others:
        raise UserError(f"{text!r} are not pixel options; the names are {', '.join(PIXEL_OPTIONS)}")
    return options


def scale_text(scale: Scale) -> str:
    """Write a scale as the option `?scale=` has it."""
    if scale.kind in ("auto", "full"):
        return scale.kind
    if scale.kind == "percentiles":
        return f"p{_shortest(scale.low)},p{_shortest(scale.high)}"
    return _shortest(scale.high) if scale.low == 0 else f"{_shortest(scale.low)},{_shortest(scale.high)}"


def _shortest(number: float) -> str:
    """The shortest text of a number that reads back as the same one."""
    return repr(number).removesuffix(".0")


def _bands(text: str, value: str) -> tuple[tuple[int, ...], int]:
    """Read `4,3,2/12` as ((4, 3, 2), 12)."""
    chosen, _, total = value.partition("/")
    bands = tuple(map(_count_or_zero, chosen.split(",")))
    bands_of = _count_or_zero(total)
    if min(bands) < 1 or max(bands) > bands_of or len(set(bands)) < len(bands):
        raise UserError(
            f"dataset {text!r}: bands={value} is not possible; "
            "give different bands, counted from 1, and how many a file has, such as bands=4,3,2/12"
        )
    return bands, bands_of


def _count_or_zero(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() else 0


def _scale(text: str, value: str) -> Scale:
    if value in ("auto", "full"):
        return Scale(value)
    parts = value.split(",")
    percentiles = all(part.startswith("p") for part in parts)
    if percentiles:
        parts = [part.removeprefix("p") for part in parts]
    numbers = [_number(text, "scale", part) for part in parts]
    low, high = numbers if len(numbers) == 2 else (0.0, numbers[0])
    is_possible = len(numbers) <= 2 and low < high
    if percentiles:
        is_possible = is_possible and len(numbers) == 2 and low >= 0 and high <= 100
    if not is_possible:
        raise UserError(
            f"dataset {text!r}: scale={value} is not possible; "
            "give the value of white (4095), of black and white (-1000,400), "
            "percentiles of each image (p1,p99), auto or full"
        )
    return Scale("percentiles" if percentiles else "values", low, high)


def _max_pixels(text: str, value: str) -> int:
    if not (value.isascii() and value.isdigit() and 0 < int(value) <= MOST_PIXELS):
        raise UserError(
            f"dataset {text!r}: max_pixels={value} is not possible; give a whole number up to {MOST_PIXELS:,}"
        )
    return int(value)


def _number(text: str, name: str, value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise UserError(f"dataset {text!r}: {name}={value} is not a number; write {name}=NUMBER") from None
