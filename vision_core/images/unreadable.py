"""Why an image is not used, and the sizes beyond which none is."""

MAX_PIXELS = 64_000_000
MAX_VALUES = 3 * MAX_PIXELS
MIN_SIDE = 8


CURES = {
    "missing": "give the path of a file that exists",
    "not_an_image": "give a JPEG, PNG, WebP, GIF, BMP or TIFF file",
    "unsupported_mode": "its values have no known place between black and white: save it as grey of 8 or 16 bits, or as RGB",
    "unsupported_tiff": "save it as PNG",
    "too_large": f"make it smaller: {MAX_PIXELS:,} pixels are the most",
    "too_small": f"give a larger one: {MIN_SIDE} pixels on a side are the least",
    "truncated": "its file ends too early: copy or download it again",
}


class UnreadableImage(Exception):
    """An image that is not to be used; `reason` is a short name such as not_an_image, truncated, corrupt, too_large."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def check_size(width: int, height: int) -> None:
    """Refuse an image by the size in its header: `too_large` above 64 million pixels, `too_small` below 8 on a side."""
    if width * height > MAX_PIXELS:
        raise UnreadableImage("too_large")
    if min(width, height) < MIN_SIDE:
        raise UnreadableImage("too_small")


def cure(reason: str) -> str:
    """What a person can do about an `UnreadableImage` of this reason."""
    return CURES.get(reason.partition(" ")[0], "mend its file, or give another image")
