"""Says on a model card what a pretrained encoder is fed: pictures, or numbers that are read as
training read them."""

from vision_core.images.pixel_options import PixelOptions, pixel_options_text

READING = (
    "The encoder was trained on files read by this project, as `{where}` with {num_channels} channels. "
    "Judge it on images that are read with the same\noptions; "
    "the image processor normalises what they give.\n\n"
)
OPEN_PICTURE = "from transformers.image_utils import load_image  # upright and in colour, as in training"
OPEN_NUMBERS = (
    "from vision_core.images.open_source import open_source  "
    "# of vision-encoder-fusion: reads files as training did"
)
PICTURE = 'load_image("image.jpg")'
TENSORS = 'return_tensors="pt"'


def feeding(snippet: str, num_channels: int, options: PixelOptions, in_own_scale: bool) -> str:
    """Rewrite `snippet`, whose lines open a picture by `load_image`, for the pixels that an encoder
    was trained on.

    in_own_scale: the pixels were floats, which the image processor does not divide by 255.
    """
    reading = pixel_options_text(options)
    if num_channels == 3 and not reading and not in_own_scale:
        return snippet
    where = f"folder:path/to/images?{reading}" if reading else "folder:path/to/images"
    lines = snippet.replace(OPEN_PICTURE, OPEN_NUMBERS)
    lines = lines.replace(PICTURE, f'open_source("{where}", num_channels={num_channels})[0].image')
    lines = lines.replace(TENSORS, f'input_data_format="channels_first", {TENSORS}')
    return READING.format(where=where, num_channels=num_channels) + lines
