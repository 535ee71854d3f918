"""The colours of the drawn scenes: eight named hues and the tones around them, in a space where
equal steps look equally large."""

import numpy as np

# Hue angle in OKLCH (Ottosson 2020), lightness and chroma of the plain colour.
NAMED_COLOURS = {
    "red": (25.0, 0.60, 0.20),
    "orange": (58.0, 0.74, 0.16),
    "yellow": (98.0, 0.87, 0.16),
    "green": (146.0, 0.66, 0.17),
    "teal": (192.0, 0.66, 0.11),
    "blue": (256.0, 0.58, 0.17),
    "purple": (302.0, 0.55, 0.19),
    "pink": (350.0, 0.76, 0.14),
}
COLOURS = tuple(NAMED_COLOURS)


def oklch_to_rgb(lightness: float, chroma: float, hue_degrees: float) -> np.ndarray:
    """Convert a colour to sRGB `[3]` in [0, 1], clipped to the gamut. Source: B. Ottosson, "A
    perceptual color space for image processing" (2020)."""
    hue = np.deg2rad(hue_degrees)
    a = chroma * np.cos(hue)
    b = chroma * np.sin(hue)
    long = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
    medium = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    short = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
    linear = np.array(
        [
            4.0767416621 * long - 3.3077115913 * medium + 0.2309699292 * short,
            -1.2684380046 * long + 2.6097574011 * medium - 0.3413193965 * short,
            -0.0041960863 * long - 0.7034186147 * medium + 1.7076147010 * short,
        ]
    ).clip(0.0, 1.0)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return encoded.astype(np.float32)
