"""Two global and several local crops of an image, each with its own augmentation (DINOv2 `data/augmentations.py`).

The operations are torchvision v2's functional ones. Colours are changed on PIL images, whose 8-bit kernels are faster than those of tensors at
these sizes (`benchmarks/augmentation_speed.py`); the blur is two small matrix products (`gaussian_blur`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as V

ASPECT = (3 / 4, 4 / 3)
JITTER_PROBABILITY, BRIGHTNESS, CONTRAST, SATURATION, HUE = 0.8, 0.4, 0.4, 0.2, 0.1
BLUR_KERNEL, BLUR_SIGMA = 9, (0.1, 2.0)
SOLARIZE_THRESHOLD = 128 / 255
# global 1, global 2, local. The published code hands 1 - p to torchvision's RandomApply, so released models saw "official".
# Its 9 taps are pixels of a 224 px crop; on 32 px they wipe out the object, hence "none".
BLUR_PROBABILITY = {"official": (0.0, 0.9, 0.5), "paper": (1.0, 0.1, 0.5), "none": (0.0, 0.0, 0.0)}
SOLARIZE_PROBABILITY = (0.0, 0.2, 0.0)


@dataclass(frozen=True)
class CropKind:
    """One kind of crop: size (height, width) in pixels, scale as shares of the image's area."""

    size: tuple[int, int]
    scale: tuple[float, float]
    blur_probability: float
    solarize_probability: float


class MultiCrop:
    """An image tensor to (two global crops, local crops), float32 `[C, h, w]` normalised by mean and std.

    Draws from torch's global CPU generator only, so seeding it makes the crops a function of the seed. Images of other than 3 channels
    skip the augmentations that need RGB (colour jitter, grayscale, solarize); `describe` says so.

    Args:
        global_crop_size, local_crop_size: (height, width) in pixels.
        global_crop_scale, local_crop_scale: share of the image's area.
        blur: "official", the probabilities that the published code really applied, "paper", or "none" for small images.
        colour_strength: factor on the ranges of the colour jitter; published 1.
        grayscale_probability: share of the crops without colours; published 0.2.
        mean, std: per channel, of images scaled to 0..1 (uint8) or in their own scale (float32).
    """

    def __init__(
        self,
        global_crop_size: tuple[int, int],
        local_crop_size: tuple[int, int],
        num_local_crops: int,
        global_crop_scale: tuple[float, float] = (0.32, 1.0),
        local_crop_scale: tuple[float, float] = (0.05, 0.32),
        blur: Literal["official", "paper", "none"] = "official",
        colour_strength: float = 1.0,
        grayscale_probability: float = 0.2,
        mean: Sequence[float] = (0.485, 0.456, 0.406),
        std: Sequence[float] = (0.229, 0.224, 0.225),
    ) -> None:
        sizes = (global_crop_size, global_crop_size, local_crop_size)
        scales = (global_crop_scale, global_crop_scale, local_crop_scale)
        first, second, local = map(CropKind, sizes, scales, BLUR_PROBABILITY[blur], SOLARIZE_PROBABILITY)
        self.global_crops, self.local_crops = [first, second], [local] * num_local_crops
        self.blur, self.is_rgb = blur, len(mean) == 3
        self.colour_strength, self.grayscale_probability = colour_strength, grayscale_probability
        self.mean, self.std = (torch.tensor(list(values)).view(-1, 1, 1) for values in (mean, std))

    def __call__(self, image: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """`image`: `[C, H, W]`, uint8 RGB or float32 of any channels."""
        picture = V.to_pil_image(image) if self.is_rgb else image
        cut = partial(self._cut, picture)
        return [cut(kind) for kind in self.global_crops], [cut(kind) for kind in self.local_crops]

    def describe(self) -> str:
        """One line for people: what was chosen and what was left out."""
        text = f"{len(self.global_crops)} global and {len(self.local_crops)} local crops, blur {self.blur}"
        if self.is_rgb:
            return f"{text}, colour strength {self.colour_strength:g}, grayscale {self.grayscale_probability:g}"
        return f"{text}; left out, they need RGB: colour jitter, grayscale, solarize"

    def _cut(self, picture: Image.Image | Tensor, kind: CropKind) -> Tensor:
        view = random_resized_crop(picture, kind.size, kind.scale)
        if _happens(0.5):
            view = V.horizontal_flip(view)
        if self.is_rgb:
            view = V.to_dtype(
                V.pil_to_tensor(random_colours(view, self.colour_strength, self.grayscale_probability)), torch.float32, scale=True
            )
        if _happens(kind.blur_probability):
            view = gaussian_blur(view, _uniform(*BLUR_SIGMA))
        if self.is_rgb and _happens(kind.solarize_probability):
            view = torch.where(view >= SOLARIZE_THRESHOLD, 1 - view, view)
        return (view - self.mean) / self.std


def random_resized_crop(picture: Image.Image | Tensor, size: tuple[int, int], scale: tuple[float, float]):
    """A box of random area and aspect (Inception; torchvision's RandomResizedCrop), resized bicubically to `size`."""
    height, width = V.get_size(picture)
    top, left, box_height, box_width = random_box(height, width, scale)
    return V.resized_crop(picture, top, left, box_height, box_width, list(size), interpolation=InterpolationMode.BICUBIC, antialias=True)


def random_box(height: int, width: int, scale: tuple[float, float]) -> tuple[int, int, int, int]:
    """Top, left, height, width: area uniform in `scale`, aspect log-uniform in 3/4..4/3; after 10 misses the greatest central box."""
    log_low, log_high = math.log(ASPECT[0]), math.log(ASPECT[1])
    for area_draw, aspect_draw, top_draw, left_draw in torch.rand(10, 4).tolist():
        area = height * width * (scale[0] + area_draw * (scale[1] - scale[0]))
        aspect = math.exp(log_low + aspect_draw * (log_high - log_low))
        box_width, box_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < box_width <= width and 0 < box_height <= height:
            return int(top_draw * (height - box_height + 1)), int(left_draw * (width - box_width + 1)), box_height, box_width
    box_width = min(width, max(round(height * ASPECT[1]), 1))
    box_height = min(height, max(round(width / ASPECT[0]), 1))
    return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width


def random_colours(picture: Image.Image, strength: float = 1.0, grayscale_probability: float = 0.2) -> Image.Image:
    """Colour jitter (brightness, contrast, saturation and hue in random order) with probability 0.8, then perhaps grayscale."""
    if _happens(JITTER_PROBABILITY):
        brightness, contrast, saturation = (
            _uniform(1 - strength * reach, 1 + strength * reach) for reach in (BRIGHTNESS, CONTRAST, SATURATION)
        )
        changes = [
            partial(V.adjust_brightness, brightness_factor=brightness),
            partial(V.adjust_contrast, contrast_factor=contrast),
            partial(V.adjust_saturation, saturation_factor=saturation),
            partial(V.adjust_hue, hue_factor=_uniform(-strength * HUE, strength * HUE)),
        ]
        for number in torch.randperm(4).tolist():
            picture = changes[number](picture)
    if _happens(grayscale_probability):
        picture = V.rgb_to_grayscale(picture, num_output_channels=3)
    return picture


def gaussian_blur(view: Tensor, sigma: float) -> Tensor:
    """torchvision's gaussian_blur (9 taps, reflected borders) of `[C, h, w]`, as one matrix product per axis."""
    rows, columns = (_blur_matrix(side, sigma) for side in view.shape[-2:])
    return rows @ view @ columns.T


def _blur_matrix(side: int, sigma: float) -> Tensor:
    """`[side, side]`: row i holds the weights of the pixels around i, those beyond a border reflected."""
    reach = BLUR_KERNEL // 2
    taps = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma) ** 2)
    band = torch.zeros(side, side + 2 * reach)
    offsets = torch.arange(side)[:, None] + torch.arange(BLUR_KERNEL)
    band.scatter_(1, offsets, (taps / taps.sum()).expand(side, -1))
    period = max(2 * (side - 1), 1)
    beyond = torch.arange(-reach, side + reach).remainder(period)
    source = torch.minimum(beyond, period - beyond)
    return torch.zeros(side, side).scatter_add_(1, source.expand(side, -1), band)


def _happens(probability: float) -> bool:
    return torch.rand(()).item() < probability


def _uniform(low: float, high: float) -> float:
    return low + torch.rand(()).item() * (high - low)
