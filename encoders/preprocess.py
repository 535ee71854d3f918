"""How an image becomes pixels for evaluation, and the image processor that says so to transformers."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as V
from transformers import BitImageProcessor

# The published evaluation resizes the shorter side to 256 for a centre crop of 224.
PUBLISHED_MARGIN = 256 / 224


def centre_view(image: Tensor, size: tuple[int, int], margin: float = PUBLISHED_MARGIN) -> Tensor:
    """`[C, H, W]` resized (bicubic) so that it covers `margin` times `size`, then the central `[C, *size]` of it; same type."""
    height, width = image.shape[-2:]
    scale = max(size[0] * margin / height, size[1] * margin / width)
    resized = [max(round(height * scale), size[0]), max(round(width * scale), size[1])]
    if resized != [height, width]:
        image = V.resize(image, resized, interpolation=InterpolationMode.BICUBIC, antialias=True)
    return V.center_crop(image, list(size))


def margin_for(image: Tensor, size: tuple[int, int]) -> float:
    """The published margin, or 1 for images that are not larger than `size`: small pictures are looked at whole."""
    return PUBLISHED_MARGIN if min(image.shape[-2] / size[0], image.shape[-1] / size[1]) > 1 else 1.0


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """`[n, C, H, W]` uint8 (scaled to 0..1) or float32 to normalised float32."""
    images = images.float() / 255 if images.dtype == torch.uint8 else images
    shape = (1, -1, 1, 1)
    return (images - torch.tensor(list(mean)).view(shape)) / torch.tensor(list(std)).view(shape)


def save_image_processor(folder: Path, size: tuple[int, int], mean: Sequence[float], std: Sequence[float], margin: float) -> None:
    """Write `preprocessor_config.json`, which `transformers.AutoImageProcessor` loads: resize, centre crop, normalise."""
    BitImageProcessor(
        size={"shortest_edge": round(min(size) * margin)},
        crop_size={"height": size[0], "width": size[1]},
        resample=3,
        image_mean=list(mean),
        image_std=list(std),
        do_convert_rgb=len(mean) == 3,
    ).save_pretrained(folder)
