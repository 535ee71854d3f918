"""Why an image is not used, and the sizes beyond which none is."""

MAX_PIXELS = 64_000_000
MAX_VALUES = 3 * MAX_PIXELS
MIN_SIDE = 8


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
