"""Why an image is not used, and the sizes beyond which none is."""

MAX_PIXELS = 64_000_000
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


def check_size(width: int, height: int, max_pixels: int = MAX_PIXELS) -> None:
    """Refuse an image by the size in its header: `too_large` above `max_pixels`, `too_small` below 8 on a side."""
    if width * height > max_pixels:
        raise UnreadableImage("too_large")
    if min(width, height) < MIN_SIDE:
        raise UnreadableImage("too_small")


def check_values(count: int, max_pixels: int = MAX_PIXELS) -> None:
    """Refuse an image whose header asks for more numbers, over all its channels, than the largest picture has."""
    if count > 3 * max_pixels:
        raise UnreadableImage("too_large")


def cure(reason: str) -> str:
    """What a person can do about an `UnreadableImage` of this reason."""
    return CURES.get(reason.partition(" ")[0], "mend its file, or give another image")
