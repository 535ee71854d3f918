"""Turn an image in any form that a user has into the tensor that an encoder's preprocessing starts
from."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vision_core.errors import UserError
from vision_core.images.any_image import (
    COLOUR,
    GREY,
    NUMPY_CHANNEL_AXES,
    TORCH_CHANNEL_AXES,
    file_tensor,
    image_tensor,
)
from vision_core.images.pixel_options import AS_STORED, PixelOptions

# how far a picture of 0 to 1 may be out of it: bicubic resizing overshoots by less
OVERSHOOT = 0.2


def encoder_images(
    images: Any, num_channels: int = COLOUR, pictures: bool = True, options: PixelOptions = AS_STORED
) -> list[Tensor]:
    """Give one image or several as a list of `[C, H, W]`; an array or tensor with four axes is a
    batch of images.

    pictures: whether an encoder of 3 channels sees pictures, whose floats are 0 to 1; False takes
    floats as they are.
    options: how paths, bytes and base64 are read.

    Raises UserError for an empty list, and for what `encoder_image` refuses, with the place of the
    image in the list.
    """
    if isinstance(images, np.ndarray | Tensor) and images.ndim == 4:
        images = list(images)
    if isinstance(images, str | bytes | np.ndarray | Tensor) or not isinstance(images, Iterable):
        return [encoder_image(images, num_channels, pictures, options)]
    if isinstance(images, bytearray | memoryview | Image.Image):
        return [encoder_image(images, num_channels, pictures, options)]
    tensors = []
    for number, image in enumerate(images, start=1):
        try:
            tensors.append(encoder_image(image, num_channels, pictures, options))
        except UserError as error:
            raise UserError(f"image {number} of the list: {error}") from None
    if not tensors:
        raise UserError("there is no image in the list; give at least one")
    return tensors


def encoder_image(
    image: Any, num_channels: int = COLOUR, pictures: bool = True, options: PixelOptions = AS_STORED
) -> Tensor:
    """Give one image as `[C, H, W]` uint8 or float32 on the CPU; `pictures` as in `encoder_images`.

    | image | 3 channels | another number of channels |
    |---|---|---|
    | path, bytes, base64 | as `any_image.file_tensor` with the options | the same |
    | PIL image | as `any_image.image_tensor` | 1 channel: luminance of 0 to 1 |
    | uint8 array, tensor | 0 to 255 | 0 to 255, taken as 0 to 1 as from a file |
    | float array, tensor | 0 to 1 | as it is, in the scale of the encoder's mean and std |
    | any other type | refused | refused |

    Arrays are `[H, W]`, or have an axis of the encoder's channels, first or last; 3-channel
    encoders repeat grey. A float picture with values outside 0 to 1 by more than 0.2 is refused,
    because 0 to 255 and normalised values look alike to no model.

    Raises:
        UserError: for anything else; the message names what was given and the cure.
    """
    if isinstance(image, np.ndarray | Tensor):
        return _of_numbers(image, num_channels, pictures)
    if isinstance(image, bytes | bytearray | memoryview | str | os.PathLike):
        return file_tensor(image, num_channels, options, pictures)
    if isinstance(image, Image.Image) and num_channels != COLOUR:
        return _of_picture(image, num_channels)
    return image_tensor(image, num_channels)


def _of_numbers(image: np.ndarray | Tensor, num_channels: int, pictures: bool) -> Tensor:
    if isinstance(image, Tensor):
        _check_type(str(image.dtype).removeprefix("torch."), num_channels)
        tensor = image.detach().cpu()
        axes = TORCH_CHANNEL_AXES
    else:
        _check_type(image.dtype.name, num_channels)
        native = image.astype(image.dtype.newbyteorder("="), copy=False)
        tensor = torch.from_numpy(np.array(native, order="C"))
        axes = NUMPY_CHANNEL_AXES
    planes = _channels_first(tensor, axes, num_channels)
    if tensor.dtype == torch.uint8:
        return planes.contiguous()
    planes = planes.to(torch.float32).contiguous()
    _check_values(planes, pictures and num_channels == COLOUR)
    return planes


def _check_type(name: str, num_channels: int) -> None:
    if name == "uint8" or "float" in name:
        return
    if name == "bool":
        cure = "for True and False take image * 255 as uint8"
    elif name == "uint16":
        cure = "for all 16 bits take image.astype('float32') / 65535; for fewer, divide by the value of white"
    else:
        cure = "where all values are 0 to 255, convert them to uint8"
    if num_channels != COLOUR:
        cure = "give float32 in the scale of the encoder's mean and std"
    raise UserError(f"an image has values of type {name}, whose white is not known; {cure}")


def _channels_first(values: Tensor, axes: tuple[int, int], num_channels: int) -> Tensor:
    """Move the channels to the front and repeat grey: `[C, H, W]` with `num_channels` channels."""
    wanted = (num_channels, GREY) if num_channels == COLOUR else (num_channels,)
    planes = values[None] if values.ndim == 2 and GREY in wanted else values
    axis = 0 if values.ndim == 2 else None
    if values.ndim == 3:
        axis = next((axis for axis in axes if values.shape[axis] in wanted), None)
    if axis is None or planes.ndim != 3 or not planes.numel():
        shapes = f"[{num_channels}, H, W] or [H, W, {num_channels}]"
        if GREY in wanted:
            shapes += " or [H, W]"
        raise UserError(
            f"an image has the shape {list(values.shape)}; this encoder takes {shapes}, "
            "of an image with alpha the first three channels, and several images as a list"
        )
    planes = planes.movedim(axis, 0)
    return planes.expand(num_channels, -1, -1)


def _check_values(planes: Tensor, pictures: bool) -> None:
    low, high = (value.item() for value in planes.aminmax())
    if not np.isfinite(low + high):
        raise UserError(
            "an image has values that are not finite; fill them in, for example with the band's mean"
        )
    if not pictures or (low >= -OVERSHOOT and high <= 1 + OVERSHOOT):
        return
    cure = "normalised pixels go to the encoder itself, without transform"
    if low >= 0:
        cure = "for values of 0 to 255 divide by 255" if high <= 256 else "divide by the value of white"
    raise UserError(
        f"a float image has values from {low:.4g} to {high:.4g}, and pictures are 0 to 1 here; {cure}"
    )


def _of_picture(picture: Image.Image, num_channels: int) -> Tensor:
    if num_channels != GREY:
        raise UserError(
            f"a PIL image has no {num_channels} channels; "
            f"give this encoder a float32 array [{num_channels}, H, W], a path or the bytes of a file"
        )
    if picture.mode.startswith("I"):
        raise UserError(
            f"a PIL image of mode {picture.mode} has 16 bits; "
            "give its path or bytes, or an array of 0 to 1: np.asarray(image) / 65535"
        )
    red, green, blue = image_tensor(picture).to(torch.float32)
    # ITU-R 601-2 with Pillow's rounding, as `decode_image` reads the picture's file
    luminance = (red * 19595 + green * 38470 + blue * 7471 + 0x8000) / 65536
    return (luminance.floor() / 255)[None]
