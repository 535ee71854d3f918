"""Turn an image in any form that a user has into the pixels that training's decoder makes of the
image's file."""

from __future__ import annotations

import base64
import os
from typing import Any
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vision_core.errors import UserError
from vision_core.files.regular_files import read_regular_file
from vision_core.images.decode import decode_image, grey_levels, is_picture, picture_tensor
from vision_core.images.pixel_options import AS_STORED, PixelOptions
from vision_core.unreadable import UnreadableImage, cure

# the axes that may hold the channels: a library's own habit first
NUMPY_CHANNEL_AXES = (2, 0)
TORCH_CHANNEL_AXES = (0, 2)
# numbers of channels
GREY = 1
COLOUR = 3


def image_tensor(image: Any, num_channels: int = COLOUR) -> Tensor:
    """Give an image as `[3, H, W]` uint8 on the CPU, equal to `decode_image` of the image's file.

    | image | rule |
    |---|---|
    | bytes | the file's content; three bands of floats have no known range and are refused |
    | path, `file://`, `data:`, base64 | the content that is read there |
    | `http://`, `https://` | refused: nothing is downloaded |
    | PIL image | loaded or not, of a mode with a known scale; see `decode.picture_tensor` |
    | array, tensor of uint8 | as it is |
    | array, tensor of uint16 | as 16 bits of a file: grey / 257, the high byte of colour |

    Arrays are `[H, W]`, or have an axis of 1 or 3 channels. Where the first and the last axis could
    both be that one, it is the last of a NumPy array, and the first of a torch tensor. The limits
    on sizes hold for encoded images, not for PIL images, arrays and tensors. A tensor that is
    already such an image is returned as it is.

    With another number of channels, `decode_image(data, num_channels)` reads files as float32
    `[C, H, W]`; `encoder_image.py` takes arrays and tensors of such data.

    Raises:
        UserError: for anything else; the message names what was given and the cure.
    """
    if isinstance(image, bytes | bytearray | memoryview | str | os.PathLike):
        return file_tensor(image, num_channels)
    if isinstance(image, Image.Image):
        return _of_picture(image)
    if isinstance(image, np.ndarray):
        return _of_array(image)
    if isinstance(image, Tensor):
        return _of_tensor(image)
    raise UserError(
        f"an image is of type {type(image).__name__}; "
        "give a path, the bytes of a file, a PIL image, a NumPy array or a torch tensor"
    )


def file_tensor(
    image: Any, num_channels: int = COLOUR, options: PixelOptions = AS_STORED, pictures: bool = True
) -> Tensor:
    """Decode the file that a path, bytes or a text names, with `options`, into `[C, H, W]` uint8 or
    float32.

    pictures: whether three bands of floats without a known range are refused.

    Raises UserError as `image_tensor` does.
    """
    if isinstance(image, bytes | bytearray | memoryview):
        data = bytes(image)
        name = "an image given as bytes"
    elif isinstance(image, str):
        data, name = _of_text(image)
    else:
        data, name = _of_file(os.fspath(image))
    return _decoded(data, name, num_channels, options, pictures and options.scale is None)


def _decoded(data: bytes, name: str, num_channels: int, options: PixelOptions, pictures: bool) -> Tensor:
    try:
        image = decode_image(data, options.file_channels(num_channels), options)
        return _levels_of_file(image, name) if num_channels == COLOUR and pictures else image
    except UnreadableImage as error:
        raise UserError(f"{name} cannot be decoded ({error.reason}); {cure(error.reason)}") from None


def _levels_of_file(image: Tensor, name: str) -> Tensor:
    if image.dtype != torch.uint8:
        raise UserError(
            f"{name} holds three bands of numbers without a known range; "
            "make an image of uint8 of them, from 0 for black to 255 for white"
        )
    return image


def _of_text(text: str) -> tuple[bytes, str]:
    scheme = text[:8].lower()
    if scheme.startswith(("http://", "https://")):
        raise UserError(
            f"{text[:300]} is not downloaded here; "
            "fetch it yourself and give its bytes, such as httpx.get(url).content"
        )
    if scheme.startswith("data:"):
        return _of_data_url(text)
    if scheme.startswith("file:"):
        return _of_file(url2pathname(urlsplit(text).path) or text)
    # transformers' chat messages have parts of type base64, which arrive as the text alone
    encoded = None if os.path.exists(text) else _from_base64(text)
    if encoded is not None and is_picture(encoded):
        return encoded, "an image given as base64"
    return _of_file(text)


def _of_data_url(url: str) -> tuple[bytes, str]:
    header, _, content = url.partition(",")
    data = _from_base64(unquote(content)) if header.endswith(";base64") else None
    if data is None:
        raise UserError(
            "an image is given as a data URL that is not in base64; "
            "write data:image/png;base64, and then the encoded file"
        )
    return data, "an image given as a data URL"


def _from_base64(text: str) -> bytes | None:
    """The bytes, or None where the text is not in base64."""
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except ValueError:
        return None


def _of_file(path: str) -> tuple[bytes, str]:
    try:
        data = read_regular_file(path)
    except UnreadableImage as error:
        raise UserError(f"{path[:300]} cannot be read ({error.reason}); {cure(error.reason)}") from None
    return data, path


def _of_picture(picture: Image.Image) -> Tensor:
    name = f"a PIL image of mode {picture.mode}, {picture.width} x {picture.height}"
    try:
        return _levels_of_file(picture_tensor(picture), name)
    except UnreadableImage as error:
        way = cure(error.reason)
        if error.reason == "corrupt":
            way = "give its path, or call load() before its file is closed"
        raise UserError(f"{name} cannot be taken ({error.reason}); {way}") from None


def _of_array(image: np.ndarray) -> Tensor:
    _check_type(image.dtype.name)
    return _levels(image, NUMPY_CHANNEL_AXES)


def _of_tensor(image: Tensor) -> Tensor:
    if image.dtype == torch.uint8 and image.ndim == 3 and image.shape[0] == COLOUR and image.numel():
        return image.cpu().contiguous()
    _check_type(str(image.dtype).removeprefix("torch."))
    return _levels(image.cpu().numpy(), TORCH_CHANNEL_AXES)


def _levels(values: np.ndarray, channel_axes: tuple[int, int]) -> Tensor:
    planes = _channels_first(values, channel_axes)
    if values.dtype.name == "uint16":
        planes = grey_levels(planes) if len(planes) == GREY else planes >> 8
    levels = torch.from_numpy(np.array(planes, dtype=np.uint8, order="C"))
    return levels.expand(COLOUR, -1, -1).contiguous()


def _check_type(name: str) -> None:
    if name in ("uint8", "uint16"):
        return
    if name == "bool":
        way = "for True and False take image * 255"
    elif "float" in name:
        way = "for values of 0 to 1 take (image * 255).round()"
    else:
        way = "where all values are 0 to 255, convert them to uint8"
    raise UserError(f"an image has values of type {name}; give PIL images or uint8 arrays of 0 to 255: {way}")


def _channels_first(values: np.ndarray, channel_axes: tuple[int, int]) -> np.ndarray:
    """`[1, H, W]` or `[3, H, W]`."""
    planes = values[None] if values.ndim == 2 else values
    if values.ndim == 3:
        axis = next((axis for axis in channel_axes if values.shape[axis] in (GREY, COLOUR)), None)
        planes = None if axis is None else np.moveaxis(values, axis, 0)
    if planes is None or planes.ndim != 3 or not planes.size:
        raise UserError(
            f"an image has the shape {list(values.shape)}; give [H, W], [H, W, 3] or [3, H, W], "
            "of an image with alpha the first three channels, and several images as a list"
        )
    return planes
