"""The published preprocessing to the pixel: how each library rounds sizes and offsets, and which
resizing it uses.

Sources: transformers 5.24 `image_processing_backends.py` and `image_transforms.py`; torchvision's
`Resize` and `CenterCrop`; timm 1.0 `transforms_factory.py: transforms_imagenet_eval`; open_clip 3.3
`transform.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as V

Size = tuple[int, int]


def published_view(
    image: Tensor, size: Size, fit: str, margin: float, interpolation: str, resampler: str
) -> Tensor:
    """Resize an image `[C, H, W]` to `margin` times `size` as `fit` says, and take the central
    `[C, *size]`.

    Where the margin is below 1 (timm's VOLO) the image gets a black border, as published. For the
    arguments see `encoders.preprocess.ImageTransform`.
    """
    if resampler == "tensor_float" and image.dtype == torch.uint8:
        image = image.float() / 255
    resized = _size_before_the_crop(tuple(image.shape[-2:]), size, fit, margin, resampler)
    if margin >= 1:
        resized = (max(resized[0], size[0]), max(resized[1], size[1]))
    # Pillow has no images of other types and numbers of channels
    is_picture = image.dtype == torch.uint8 and image.shape[0] == 3
    if resampler == "pillow" and is_picture:
        image = _resize_by_pillow(image, resized, interpolation)
    else:
        image = resize(image, resized, interpolation)
    return _centre_crop(image, size, halves_to_even=resampler == "pillow")


def resize(image: Tensor, size: Sequence[int], interpolation: str) -> Tensor:
    """Resize an image `[C, H, W]` to `[C, *size]` by torchvision with antialiasing, in its own type.
    An image of that size stays as it is."""
    if tuple(image.shape[-2:]) == tuple(size):
        return image
    return V.resize(image, list(size), interpolation=InterpolationMode(interpolation), antialias=True)


def _size_before_the_crop(image: Size, size: Size, fit: str, margin: float, resampler: str) -> Size:
    """Height and width to which an image of that height and width is resized.

    The shorter side is rounded, and the fraction of the longer one dropped. For sizes that are not
    squares timm and open_clip round both; transformers has no such sizes.
    """
    if fit == "squash":
        return round(size[0] * margin), round(size[1] * margin)
    scale = max(size[0] * margin / image[0], size[1] * margin / image[1])
    if resampler == "pillow" and size[0] != size[1]:
        return max(round(image[0] * scale), 1), max(round(image[1] * scale), 1)
    new_short = round(min(image) * scale)
    new_long = int(new_short * max(image) / min(image))
    if image[0] <= image[1]:
        return new_short, new_long
    return new_long, new_short


def _resize_by_pillow(image: Tensor, size: Size, interpolation: str) -> Tensor:
    picture = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    picture = picture.resize((size[1], size[0]), Image.Resampling[interpolation.upper()])
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()


def _centre_crop(image: Tensor, size: Size, halves_to_even: bool) -> Tensor:
    """The central `[C, *size]`; black where the image is smaller. torchvision rounds the offset to the
    nearest pixel, transformers down."""
    height, width = image.shape[-2:]
    missing_height = max(size[0] - height, 0)
    missing_width = max(size[1] - width, 0)
    if missing_height or missing_width:
        above = missing_height // 2
        left = missing_width // 2
        image = V.pad(image, [left, above, missing_width - left, missing_height - above], fill=0)
    spare_height = image.shape[-2] - size[0]
    spare_width = image.shape[-1] - size[1]
    if halves_to_even:
        return V.crop(image, round(spare_height / 2), round(spare_width / 2), *size)
    return V.crop(image, spare_height // 2, spare_width // 2, *size)
