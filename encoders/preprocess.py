"""How an image becomes pixels for evaluation, and the image processor that says so to transformers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as V
from transformers import BitImageProcessor

from vision_core.errors import UserError

# The published evaluation resizes the shorter side to 256 for a centre crop of 224.
PUBLISHED_MARGIN = 256 / 224


@dataclass(frozen=True)
class ImageTransform:
    """How an image `[C, H, W]`, uint8 or float32, becomes the pixels `[C, height, width]` of a model; a value that fits into JSON.

    size: (height, width). mean, std: one number for all channels or one per channel. fit: `crop` resizes so that the image covers `margin` times the
    size and takes the centre (images that are not larger than the size are looked at whole); `squash` resizes both sides to the size, whatever the
    aspect ratio. interpolation: of the resize, with antialiasing. margin: 1 means that nothing but the longer side is cut.
    """

    size: tuple[int, int]
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    fit: Literal["crop", "squash"] = "crop"
    margin: float = 1.0
    interpolation: Literal["nearest", "bilinear", "bicubic"] = "bicubic"

    def view(self, image: Tensor) -> Tensor:
        """`[C, H, W]` resized and cropped to `[C, height, width]`, in its own type and scale: what a cache or a data worker holds."""
        if self.fit == "crop":
            return centre_view(image, self.size, margin_for(image, self.size, self.margin), self.interpolation)
        if tuple(image.shape[-2:]) == self.size:
            return image
        return V.resize(image, list(self.size), interpolation=InterpolationMode(self.interpolation), antialias=True)

    def pixels(self, views: Tensor) -> Tensor:
        """Views `[n, C, height, width]` as normalised float32 pixels."""
        return normalise(views, self.mean, self.std)

    def __call__(self, images: Iterable[Tensor]) -> Tensor:
        """Images `[C, H, W]` of any sizes as `pixel_values` `[n, C, height, width]`."""
        return self.pixels(torch.stack([self.view(image) for image in images]))

    def resized(self, size: tuple[int, int], fit: Literal["crop", "squash"] | None = None) -> ImageTransform:
        """The same with another size and, where given, another fit."""
        return replace(self, size=tuple(size), fit=fit or self.fit)

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ImageTransform:
        """The inverse of `to_dict`. Raises UserError for what is no transform."""
        try:
            return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})
        except TypeError as error:
            raise UserError(
                f"not the description of an image transform ({error}); its keys are {', '.join(cls.__dataclass_fields__)}"
            ) from None


def centre_view(image: Tensor, size: tuple[int, int], margin: float = PUBLISHED_MARGIN, interpolation: str = "bicubic") -> Tensor:
    """`[C, H, W]` resized (with antialiasing) so that it covers `margin` times `size`, then the central `[C, *size]` of it; same type.

    Sizes and offsets are rounded as transformers' image processors round them: the shorter side to the nearest pixel, the longer
    one and the offsets of the crop down.
    """
    height, width = image.shape[-2:]
    short, long = min(height, width), max(height, width)
    new_short = round(short * max(size[0] * margin / height, size[1] * margin / width))
    new_long = int(new_short * long / short)
    resized = (new_short, new_long) if height <= width else (new_long, new_short)
    resized = [max(resized[0], size[0]), max(resized[1], size[1])]
    if resized != [height, width]:
        image = V.resize(image, resized, interpolation=InterpolationMode(interpolation), antialias=True)
    return V.crop(image, (resized[0] - size[0]) // 2, (resized[1] - size[1]) // 2, *size)


def margin_for(image: Tensor, size: tuple[int, int], margin: float = PUBLISHED_MARGIN) -> float:
    """`margin`, or 1 for images that are not larger than `size`: small pictures are looked at whole."""
    return margin if min(image.shape[-2] / size[0], image.shape[-1] / size[1]) > 1 else 1.0


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """`[n, C, H, W]` uint8 (scaled to 0..1) or float32 (in its own scale) to float32, minus mean, over std.

    `mean` and `std` hold one number for all channels or one per channel; another count raises UserError.
    """
    for values in (mean, std):
        if len(values) not in (1, images.shape[1]):
            raise UserError(f"image_mean and image_std need one number for each of {images.shape[1]} channels, not {len(values)}")
    images = images.float() / 255 if images.dtype == torch.uint8 else images.float()
    mean, std = (torch.tensor(list(values), device=images.device).view(1, -1, 1, 1) for values in (mean, std))
    return (images - mean) / std


def save_image_processor(
    folder: Path, size: tuple[int, int], mean: Sequence[float], std: Sequence[float], margin: float, in_own_scale: bool | None = None
) -> None:
    """Write `preprocessor_config.json`, which `transformers.AutoImageProcessor` loads: resize, centre crop, normalise.

    With 3 channels it is the processor of the released DINOv2 models, and for square sizes its pixels are those of `centre_view` and
    `normalise`. A processor can only set the shorter side: for other sizes the two agree where the image is at least as elongated
    as `size`; a less elongated one gets black bars from the processor.

    in_own_scale: nothing is converted to RGB and nothing divided by 255, because `mean` and `std` are in the scale of the data, which a source's
    `?scale=` has made 0..1 or which is its own. Give it float `[C, H, W]` arrays or tensors with `input_data_format="channels_first"`. By
    default it is so for other numbers of channels than 3.
    """
    in_own_scale = len(mean) != 3 if in_own_scale is None else in_own_scale
    BitImageProcessor(
        size={"shortest_edge": round(min(size) * margin)},
        crop_size={"height": size[0], "width": size[1]},
        resample=3,
        image_mean=list(mean),
        image_std=list(std),
        do_rescale=not in_own_scale,
        do_convert_rgb=not in_own_scale,
    ).save_pretrained(folder)
