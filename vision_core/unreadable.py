"""Say why an image cannot be used and what to do about it, and hold the limits on sizes."""

from vision_core.printable import shortened

MAX_PIXELS = 64_000_000
MIN_SIDE = 8
MAX_FILE_BYTES = 256 * 2**20
MOST_OF_A_REASON = 200  # characters; a library's words may stand behind the name of the reason
MOST_UNPACKED_ZEROS = 256 * 2**20
MOST_TIMES_PACKED = 900


CURES = {
    "cannot_be_opened": (
        "its name may be too long or hold a NUL character, its links may lead in a circle, or its "
        "permissions refuse it"
    ),
    "not_a_regular_file": "give a file, not a folder, a pipe, a socket or a device",
    "missing": "give the path of a file that exists",
    "not_an_image": (
        "give a JPEG, PNG, WebP, GIF, BMP or TIFF file, an array that NumPy saved, or another format of "
        "docs/data.md"
    ),
    "unsupported_mode": (
        "its values have no known place between black and white: save it as grey of 8 or 16 bits, or as "
        "RGB; or say in the source which values these are, such as ?scale=0,4095"
    ),
    "unsupported_tiff": "save it as PNG",
    "unsupported_type": "save its values as whole numbers or as floats",
    "unsupported_axes": "save it as pages of height x width",
    "unsupported_colours": "save it as grey, as RGB, or as one band for each channel",
    "unsupported_compression": "save it uncompressed, or with LZW, deflate, PackBits, Zstandard, JPEG or WebP",
    "needs_imagecodecs": (
        "this kind of TIFF needs the package imagecodecs: pip install 'vision-encoder-fusion[scientific]'"
    ),
    "several_images": (
        "it holds more than one image: save each as a file of its own; the channels of one image are as "
        "many pages of grey as channels are asked for, or the axis C of ImageJ and OME files"
    ),
    "ambiguous_channels": (
        "its first and its last axis could both be the channels: save it with another height or width"
    ),
    "python_objects": "it holds Python objects, which are never loaded: save an array of numbers",
    "nodata_only": "a band holds no value at all: leave the image out, or correct its nodata value",
    "not_finite": "it holds infinite values, or numbers beyond 3.4e38: replace them, or mark them as nodata",
    "no_full_scale": "floats have no full range: give the values of black and white, such as ?scale=0,1",
    "not_its_files_pixels": "Pillow does not give the numbers that its file holds: give its path",
    "too_large": f"make it smaller, or allow more than {MAX_PIXELS:,} pixels by ?max_pixels=NUMBER in the source",
    "too_small": f"give a larger one: {MIN_SIDE} pixels on a side are the least",
    "outside_the_data_folder": (
        "its link leads out of the data's folder: add ?follow_links=true to the source, or name the folder "
        "that holds it"
    ),
    "file_too_large": (
        f"{MAX_FILE_BYTES // 2**20} MiB are the most of a picture, and 2 GiB of a volume: divide it, or "
        "save its images as files of their own"
    ),
    "no_pixels": "it holds no image: leave it out",
    "unsupported_dicom": "save it uncompressed, as MONOCHROME1, MONOCHROME2, RGB or PALETTE COLOR of at most 32 bits",
    "needs_pylibjpeg": (
        "this compression of DICOM needs packages of its own: pip install pylibjpeg pylibjpeg-libjpeg "
        "pylibjpeg-openjpeg"
    ),
    "unsupported_nifti": "save it as a volume of numbers with an affine, with up to four axes",
    "unsupported_slide": "openslide cannot open it: convert it to a tiled pyramidal TIFF",
    "truncated": "its file ends too early: copy or download it again",
}
OTHER_CHANNELS = (
    "choose the bands that are meant by ?bands=1,2,3 in the source, or save them in a file of their own; "
    "--num_channels of pretrain/dinov2.py makes an encoder for as many as it has"
)


class UnreadableImage(Exception):
    """An image that is not to be used; `reason` is a short name such as not_an_image, truncated,
    corrupt, too_large."""

    def __init__(self, reason: str) -> None:
        reason = shortened(reason, MOST_OF_A_REASON)
        super().__init__(reason)
        self.reason = reason


def check_size(width: int, height: int, max_pixels: int = MAX_PIXELS) -> None:
    """Refuse an image by the size in its header: `too_large` above `max_pixels`, `too_small` below
    8 on a side."""
    if width * height > max_pixels:
        raise UnreadableImage("too_large")
    if min(width, height) < MIN_SIDE:
        raise UnreadableImage("too_small")


def check_values(count: int, max_pixels: int = MAX_PIXELS) -> None:
    """Refuse an image whose header asks for more numbers, over all its channels, than the largest
    picture has."""
    if count > 3 * max_pixels:
        raise UnreadableImage("too_large")


def check_inflation(unpacked: int, packed: int) -> None:
    """Refuse what unpacks to more than 256 MiB and 900 times its bytes: deflate reaches 1,032
    times, for zeros alone, and no image does."""
    if unpacked > MOST_UNPACKED_ZEROS and unpacked > MOST_TIMES_PACKED * packed:
        raise UnreadableImage("too_large")


def cure(reason: str) -> str:
    """What a person can do about an `UnreadableImage` of this reason."""
    name = reason.partition(" ")[0]
    if name.startswith("not_") and name.endswith("_channels"):
        return OTHER_CHANNELS
    return CURES.get(name, "mend its file, or give another image")
