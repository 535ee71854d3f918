"""How an image becomes pixels for evaluation, and the image processor by which transformers does the
same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import BitImageProcessor

from encoders.published_view import published_view, resize
from vision_core.errors import UserError
from vision_core.images.encoder_image import encoder_images
from vision_core.images.pixel_options import read_pixel_options
from vision_core.plain_values import check_types
from vision_core.printable import shortened

Preprocess = Literal["published", "whole"]

# The published evaluation resizes the shorter side to 256 for a centre crop of 224.
PUBLISHED_MARGIN = 256 / 224
# a description with more than these is a mistake, or made to exhaust the memory
MAX_SIDE = 2**15
MAX_CHANNELS = 2**15
MAX_MARGIN = 100
SHOWN_OF_A_VALUE = 60  # characters
# fields of `ImageTransform` that are lists in JSON
FIELDS_OF_SEVERAL = ("size", "mean", "std")


@dataclass(frozen=True)
class ImageTransform:
    """How an image becomes the pixels `[C, height, width]` of a model; a value that fits into JSON.

    Attributes:
        size: (height, width).
        mean, std: one number for all channels or one for each.
        fit: `crop` resizes so that the image covers `margin` times the size, and takes the centre.
            `squash` resizes both sides to `margin` times the size, whatever the aspect ratio, and
            takes the centre.
        margin: with 1 the crop takes nothing away but what the longer side has too much.
        interpolation: of the resize, with antialiasing.
        preprocess: `published` treats every image so, as the model's own library does. `whole`
            takes margin 1 for images that are not larger than the size, and for all that are
            squashed, so that nothing of a small picture is cropped.
        resampler: which resizing `published` uses: `tensor` as transformers' processors resize,
            `tensor_float` as DINOv3's, which scale to 0..1 first, `pillow` as timm, open_clip and
            facebookresearch/dinov2 resize PIL images. `whole` always uses `tensor`.
        num_channels: how many channels the images have.
        pictures: whether images of 3 channels are pictures, whose floats are 0 to 1; False is for
            numbers in the scale of mean and std.
        pixel_options: how files are read, as the options of a source's text (`scale=4095`,
            docs/data.md); empty for as they are.
    """

    size: tuple[int, int]
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    fit: Literal["crop", "squash"] = "crop"
    margin: float = 1.0
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"] = "bicubic"
    preprocess: Preprocess = "whole"
    resampler: Literal["tensor", "tensor_float", "pillow"] = "tensor"
    num_channels: int = 3
    pictures: bool = True
    pixel_options: str = ""

    def view(self, image: Tensor) -> Tensor:
        """An image `[C, H, W]` resized and cropped to `[C, height, width]`, as a cache or a data
        worker holds it: in its own type and scale, but float32 of 0..1 where the resampler is
        `tensor_float`.
        """
        if self.preprocess == "published":
            return published_view(image, self.size, self.fit, self.margin, self.interpolation, self.resampler)
        if self.fit == "crop":
            margin = margin_for(image, self.size, max(self.margin, 1.0))
            return centre_view(image, self.size, margin, self.interpolation)
        return resize(image, self.size, self.interpolation)

    def pixels(self, views: Tensor) -> Tensor:
        """Views `[n, C, height, width]` as normalised float32 pixels."""
        return normalise(views, self.mean, self.std)

    def __call__(self, images: Any) -> Tensor:
        """One image or several, of any sizes, as `pixel_values` `[n, C, height, width]`.

        An image is a path, the bytes of a file, a PIL image, an array or a tensor; which values it
        may have, and what is refused, is `vision_core/images/encoder_image.py`'s table.
        """
        options = read_pixel_options(self.pixel_options)
        pictures = self.pictures or options.scale is not None  # a scale has made them 0 to 1
        taken = encoder_images(images, self.num_channels, pictures, options)
        return self.pixels(torch.stack([self.view(image) for image in taken]))

    def resized(self, size: tuple[int, int], fit: Literal["crop", "squash"] | None = None) -> ImageTransform:
        """The transform with another size and, where it is given, another fit. If that is `squash`,
        the margin becomes 1, so that nothing of an image is cropped."""
        margin = 1.0 if fit == "squash" else self.margin
        return replace(self, size=tuple(size), fit=fit or self.fit, margin=margin)

    def to_dict(self) -> dict[str, Any]:
        """The transform as JSON has it."""
        values = asdict(self)
        return values | {name: list(values[name]) for name in FIELDS_OF_SEVERAL}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ImageTransform:
        """The inverse of `to_dict`. Raises UserError for values that describe no transform."""
        check_types(cls, values, "the description of an image transform")
        values = dict(values)
        for name in FIELDS_OF_SEVERAL:
            if isinstance(values.get(name), list):
                values[name] = tuple(values[name])
        try:
            made = cls(**values)
        except TypeError as error:
            keys = ", ".join(cls.__dataclass_fields__)
            raise UserError(
                f"not the description of an image transform ({error}); its keys are {keys}"
            ) from None
        made._check_values()
        return made

    def _check_values(self) -> None:
        """Raise UserError for sizes and numbers with which no image becomes pixels."""
        problems = {
            "size": not all(1 <= side <= MAX_SIDE for side in self.size),
            "num_channels": not 1 <= self.num_channels <= MAX_CHANNELS,
            "mean": len(self.mean) not in (1, self.num_channels),
            "std": len(self.std) not in (1, self.num_channels) or not all(self.std),
            "margin": not 0 < self.margin <= MAX_MARGIN,
        }
        wrong = [name for name, is_wrong in problems.items() if is_wrong]
        if wrong:
            said = shortened(getattr(self, wrong[0]), SHOWN_OF_A_VALUE)
            raise UserError(
                f"the description of an image transform says {wrong[0]} = {said}, "
                "with which no image becomes pixels"
            )


def centre_view(
    image: Tensor, size: tuple[int, int], margin: float = PUBLISHED_MARGIN, interpolation: str = "bicubic"
) -> Tensor:
    """Resize an image `[C, H, W]` with antialiasing so that it covers `margin` times `size`, and take
    its central `[C, *size]`, in its own type.

    Sizes and offsets are rounded as transformers' image processors round them: the shorter side to
    the nearest pixel, the longer one and the offsets of the crop down.
    """
    return published_view(image, size, "crop", margin, interpolation, "tensor")


def margin_for(image: Tensor, size: tuple[int, int], margin: float = PUBLISHED_MARGIN) -> float:
    """The margin for an image: 1 where it is not larger than `size`, so that nothing of a small
    picture is cropped, and otherwise `margin`."""
    is_larger = min(image.shape[-2] / size[0], image.shape[-1] / size[1]) > 1
    return margin if is_larger else 1.0


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Images `[n, C, H, W]` as float32, minus mean, over std. uint8 is scaled to 0..1 first, float32
    stays in its own scale.

    `mean` and `std` hold one number for all channels or one per channel; another count raises
    UserError.
    """
    num_channels = images.shape[1]
    for values in (mean, std):
        if len(values) not in (1, num_channels):
            raise UserError(
                f"image_mean and image_std need one number for each of {num_channels} channels, "
                f"not {len(values)}"
            )
    scaled = images.float() / 255 if images.dtype == torch.uint8 else images.float()
    return (scaled - _one_per_channel(mean, scaled)) / _one_per_channel(std, scaled)


def _one_per_channel(values: Sequence[float], images: Tensor) -> Tensor:
    """Numbers as `[1, C, 1, 1]`, beside the images."""
    return torch.tensor(list(values), device=images.device).view(1, -1, 1, 1)


def save_image_processor(
    folder: Path,
    size: tuple[int, int],
    mean: Sequence[float],
    std: Sequence[float],
    margin: float,
    in_own_scale: bool | None = None,
    pixel_options: str = "",
) -> None:
    """Write `preprocessor_config.json`, which `transformers.AutoImageProcessor` loads: resize,
    centre crop, normalise.

    With 3 channels it is the processor of the released DINOv2 models, and for square sizes its
    pixels are those of `centre_view` and `normalise`. A processor can only set the shorter side:
    for other sizes the two agree where the image is at least as elongated as `size`; a less
    elongated one gets black bars from the processor.

    Args:
        in_own_scale: whether nothing is converted to RGB and nothing divided by 255, because `mean`
            and `std` are in the scale of the data, which a source's `?scale=` has made 0..1 or
            which is its own. Such a processor takes float `[C, H, W]` arrays or tensors with
            `input_data_format="channels_first"`. Default: True for other numbers of channels than
            3.
        pixel_options: how the files were read, as `ImageTransform` has it. transformers keeps the
            key and does not use it.
    """
    if in_own_scale is None:
        in_own_scale = len(mean) != 3
    processor = BitImageProcessor(
        size={"shortest_edge": round(min(size) * margin)},
        crop_size={"height": size[0], "width": size[1]},
        resample=3,
        image_mean=list(mean),
        image_std=list(std),
        do_rescale=not in_own_scale,
        do_convert_rgb=not in_own_scale,
    )
    processor.pixel_options = pixel_options
    processor.save_pretrained(folder)
