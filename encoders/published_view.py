"""The published preprocessing to the pixel: how each library rounds sizes and offsets, and with
what it resizes.

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
    """`[C, H, W]` resized to `margin` times `size` as `fit` says, then the central `[C, *size]`.

    Where the margin is below 1 (timm's VOLO) the image stands in a black border, as published. For
    arguments see `encoders.preprocess.ImageTransform`.
    """
    if resampler == "tensor_float" and image.dtype == torch.uint8:
        image = image.float() / 255
    resized = _target(tuple(image.shape[-2:]), size, fit, margin, resampler)
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
    """`[C, H, W]` to `[C, *size]` by torchvision with antialiasing, same type; an image of that
    size as it is."""
    if tuple(image.shape[-2:]) == tuple(size):
        return image
    return V.resize(image, list(size), interpolation=InterpolationMode(interpolation), antialias=True)


def _target(image: Size, size: Size, fit: str, margin: float, resampler: str) -> Size:
    """Height and width before the crop.

    The shorter side is rounded, and the fraction of the longer one dropped. For sizes that are no
    squares timm and open_clip round both; transformers has no such sizes.
    """
    if fit == "squash":
        return round(size[0] * margin), round(size[1] * margin)
    scale = max(size[0] * margin / image[0], size[1] * margin / image[1])
    if resampler == "pillow" and size[0] != size[1]:
        return max(round(image[0] * scale), 1), max(round(image[1] * scale), 1)
    short, long = min(image), max(image)
    new_short = round(short * scale)
    new_long = int(new_short * long / short)
    return (new_short, new_long) if image[0] <= image[1] else (new_long, new_short)


def _resize_by_pillow(image: Tensor, size: Size, interpolation: str) -> Tensor:
    picture = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    picture = picture.resize((size[1], size[0]), Image.Resampling[interpolation.upper()])
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()


def _centre_crop(image: Tensor, size: Size, halves_to_even: bool) -> Tensor:
    """The central `[C, *size]`; black where the image is smaller. torchvision rounds the offset,
    transformers cuts it."""
    missing = [max(wanted - side, 0) for wanted, side in zip(size, image.shape[-2:], strict=True)]
    if any(missing):
        before = [each // 2 for each in missing]
        after = [each - half for each, half in zip(missing, before, strict=True)]
        image = V.pad(image, [before[1], before[0], after[1], after[0]], fill=0)
    spare = [side - wanted for wanted, side in zip(size, image.shape[-2:], strict=True)]
    top, left = (round(each / 2) if halves_to_even else each // 2 for each in spare)
    return V.crop(image, top, left, *size)
