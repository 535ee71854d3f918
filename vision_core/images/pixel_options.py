"""How a source's stored numbers become pixels, where the user says it: the options scale, nodata and max_pixels."""

from dataclasses import dataclass
from typing import Literal

from vision_core.errors import UserError
from vision_core.images.unreadable import MAX_PIXELS

PIXEL_OPTIONS = ("scale", "nodata", "max_pixels")
# Pillow refuses larger ones by itself
MOST_PIXELS = 178_956_970


@dataclass(frozen=True)
class Scale:
    """Which stored values become 0 and 1.

    kind: `values`, low and high are stored values; `percentiles`, of each image by itself; `auto`, of samples of the source, which
    `open_source` replaces by values; `full`, the whole range that the file's type or header gives.
    """

    kind: Literal["values", "percentiles", "auto", "full"]
    low: float = 0.0
    high: float = 0.0


@dataclass(frozen=True)
class PixelOptions:
    """`scale` None leaves values as they are documented for their format. `nodata` is a value that stands for none."""

    scale: Scale | None = None
    nodata: float | None = None
    max_pixels: int = MAX_PIXELS


AS_STORED = PixelOptions()


def take_pixel_options(text: str, options: dict[str, str]) -> tuple[PixelOptions, dict[str, str]]:
    """The pixel options among those of the source `text`, and the others. Raises UserError for a value that is not possible."""
    others = {name: value for name, value in options.items() if name not in PIXEL_OPTIONS}
    scale = _scale(text, options["scale"]) if "scale" in options else None
    nodata = _number(text, "nodata", options["nodata"]) if "nodata" in options else None
    max_pixels = _max_pixels(text, options["max_pixels"]) if "max_pixels" in options else MAX_PIXELS
    return PixelOptions(scale, nodata, max_pixels), others


def _scale(text: str, value: str) -> Scale:
    if value in ("auto", "full"):
        return Scale(value)
    parts = value.split(",")
    percentiles = all(part.startswith("p") for part in parts)
    numbers = [_number(text, "scale", part.removeprefix("p") if percentiles else part) for part in parts]
    low, high = numbers if len(numbers) == 2 else (0.0, numbers[0])
    possible = len(parts) <= 2 and low < high and (not percentiles or (len(parts) == 2 and low >= 0 and high <= 100))
    if not possible:
        raise UserError(
            f"dataset {text!r}: scale={value} is not possible; give the value of white (4095), of black and white (-1000,400), "
            "percentiles of each image (p1,p99), auto or full"
        )
    return Scale("percentiles" if percentiles else "values", low, high)


def _max_pixels(text: str, value: str) -> int:
    if not (value.isascii() and value.isdigit() and 0 < int(value) <= MOST_PIXELS):
        raise UserError(f"dataset {text!r}: max_pixels={value} is not possible; give a whole number up to {MOST_PIXELS:,}")
    return int(value)


def _number(text: str, name: str, value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise UserError(f"dataset {text!r}: {name}={value} is no number; write {name}=NUMBER") from None
