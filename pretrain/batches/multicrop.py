"""Makes two global and several local crops of an image, each with its own augmentation (DINOv2
`data/augmentations.py`).

The operations are torchvision v2's functional ones. Colours of uint8 images are changed on PIL
images, whose 8-bit kernels are faster than those of tensors at these sizes
(`benchmarks/augmentation_speed.py`), those of float32 images on tensors, which keep all their
levels. The blur is two small matrix products (`gaussian_blur`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as V

from pretrain.batches.band_augmentations import random_band_jitter, random_dropped_channels, solarize_bands
from pretrain.batches.stain_jitter import random_stains

CROP_ASPECT = (3 / 4, 4 / 3)
JITTER_PROBABILITY = 0.8
BRIGHTNESS = 0.4
CONTRAST = 0.4
SATURATION = 0.2
HUE = 0.1
BLUR_KERNEL = 9
BLUR_SIGMA = (0.1, 2.0)
SOLARIZE_THRESHOLD = 128 / 255
# Of global 1, global 2 and local crops. The published code hands 1 - p to torchvision's RandomApply,
# so released models saw "official". Its 9 taps are pixels of a 224 px crop; on 32 px they wipe out
# the object, hence "none".
BLUR_PROBABILITY = {"official": (0.0, 0.9, 0.5), "paper": (1.0, 0.1, 0.5), "none": (0.0, 0.0, 0.0)}
SOLARIZE_PROBABILITY = 0.2  # of global 2 alone
QUARTER_TURNS = {
    1: Image.Transpose.ROTATE_90,
    2: Image.Transpose.ROTATE_180,
    3: Image.Transpose.ROTATE_270,
}  # counter-clockwise


@dataclass(frozen=True)
class CropKind:
    """One kind of crop: size (height, width) in pixels, scale as shares of the image's area. The
    probabilities are those of its augmentations."""

    size: tuple[int, int]
    scale: tuple[float, float]
    blur_probability: float
    solarize_probability: float


class Poses(NamedTuple):
    """How a crop may lie: probabilities of a flip, and whether each of the four quarter turns is as
    likely."""

    horizontal_flip_probability: float = 0.5
    vertical_flip_probability: float = 0.0
    quarter_turns: bool = False


PUBLISHED_POSES = Poses()


class MultiCrop:
    """An image tensor to (two global crops, local crops), float32 `[C, h, w]` normalised by mean
    and std.

    Draws from torch's global CPU generator only, so seeding it makes the crops a function of the
    seed. Hue, saturation, grayscale and stains need RGB: images of other than 3 channels skip them,
    and `describe` says so.

    Args:
        global_crop_size, local_crop_size: (height, width) in pixels.
        global_crop_scale, local_crop_scale: share of the image's area.
        blur: "official", the probabilities that the published code really applied, "paper", or
            "none" for small images.
        colour_strength: factor on the ranges of the colour jitter; published 1.
        grayscale_probability: share of the crops without colours; published 0.2.
        mean, std: per channel, of images scaled to 0..1 (uint8) or in their own scale (float32).
        poses: flips and turns.
        solarize_probability: of the second global crop; None is the published 0.2 for RGB and 0 for
            other images.
        band_jitter_strength: factor on the ranges of `random_band_jitter`, for any number of
            channels; 0 is off.
        channel_drop_probability: share of the images that lose channels, in all their crops alike;
            a lost channel is its mean, 0 here.
        stain_strength: of `random_stains`, for RGB; 0 is off.
        known_range: float32 images of 3 channels lie in 0..1, as `?scale=` makes them, and are
            colours; else they are bands of any units.
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
        *,
        poses: Poses = PUBLISHED_POSES,
        solarize_probability: float | None = None,
        band_jitter_strength: float = 0.0,
        channel_drop_probability: float = 0.0,
        stain_strength: float = 0.0,
        known_range: bool = True,
    ) -> None:
        self.blur = blur
        self.is_rgb = len(mean) == 3
        self.known_range = known_range
        self.solarizes_bands = solarize_probability is not None
        if solarize_probability is None:
            solarize_probability = SOLARIZE_PROBABILITY if self.is_rgb else 0.0
        self.solarize_probability = solarize_probability
        self.colour_strength = colour_strength
        self.grayscale_probability = grayscale_probability
        self.poses = poses
        self.stain_strength = stain_strength
        self.band_jitter_strength = band_jitter_strength
        self.channel_drop_probability = channel_drop_probability
        self.mean = torch.tensor(list(mean)).view(-1, 1, 1)
        self.std = torch.tensor(list(std)).view(-1, 1, 1)
        first, second, local = BLUR_PROBABILITY[blur]
        self.global_crops = [
            CropKind(global_crop_size, global_crop_scale, first, 0.0),
            CropKind(global_crop_size, global_crop_scale, second, solarize_probability),
        ]
        self.local_crops = [CropKind(local_crop_size, local_crop_scale, local, 0.0)] * num_local_crops

    def __call__(self, image: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """The global and the local crops of `[C, H, W]`, uint8 RGB or float32 of any channels."""
        is_picture = image.dtype == torch.uint8
        picture = V.to_pil_image(image) if is_picture else image
        dropped: list[int] = []
        if self.channel_drop_probability:
            dropped = random_dropped_channels(len(self.mean), self.channel_drop_probability)
        is_rgb = self.is_rgb and (self.known_range or is_picture)
        crop = partial(self._crop, picture, is_rgb, dropped)
        global_crops = [crop(kind) for kind in self.global_crops]
        local_crops = [crop(kind) for kind in self.local_crops]
        return global_crops, local_crops

    def describe(self, of_floats: bool = False) -> str:
        """One line for people: what was chosen and what was left out. of_floats: of float images,
        whose range may not be known."""
        has_colours = self.is_rgb and (self.known_range or not of_floats)
        words = [f"{name} {value:g}" for name, value in self._strengths(has_colours).items()]
        if self.poses.quarter_turns:
            words.append("quarter turns")
        text = (
            f"{len(self.global_crops)} global and {len(self.local_crops)} local crops, "
            f"blur {self.blur}, {', '.join(words)}"
        )
        if has_colours:
            return text
        need = "RGB of a known range (?scale=)" if self.is_rgb else "RGB"
        return f"{text}; left out, they need {need}: hue, saturation, grayscale, stains"

    def _strengths(self, has_colours: bool) -> dict[str, float]:
        """The numbers of all augmentations that images can have, and that are on or published."""
        strengths: dict[str, float] = {}
        if has_colours:
            strengths["colour strength"] = self.colour_strength
            strengths["grayscale"] = self.grayscale_probability
        if has_colours and self.stain_strength:
            strengths["stain strength"] = self.stain_strength
        if self.band_jitter_strength:
            strengths["band jitter"] = self.band_jitter_strength
        can_solarize = has_colours or self.solarizes_bands
        strengths["solarize"] = self.solarize_probability if can_solarize else 0.0
        if self.channel_drop_probability:
            strengths["channel drop"] = self.channel_drop_probability
        strengths["horizontal flip"] = self.poses.horizontal_flip_probability
        strengths["vertical flip"] = self.poses.vertical_flip_probability
        return strengths

    def _crop(
        self, picture: Image.Image | Tensor, is_rgb: bool, dropped: list[int], kind: CropKind
    ) -> Tensor:
        """One crop `[C, h, w]`, normalised. dropped: the channels that the image loses."""
        view = random_view(picture, kind.size, kind.scale, self.poses)
        if is_rgb:
            view = self._with_colours(view)
        if self.band_jitter_strength:
            view = random_band_jitter(view, self.std, self.band_jitter_strength)
        if _happens(kind.blur_probability):
            view = gaussian_blur(view, _uniform(*BLUR_SIGMA))
        if (is_rgb or self.solarizes_bands) and _happens(kind.solarize_probability):
            view = solarize(view) if is_rgb else solarize_bands(view, self.mean)
        pixels = (view - self.mean) / self.std
        pixels[dropped] = 0
        return pixels

    def _with_colours(self, view: Image.Image | Tensor) -> Tensor:
        """The view with other colours, float32 `[3, h, w]` of 0..1."""
        if isinstance(view, Tensor):
            view = view.clamp(0, 1)  # bicubic weights overshoot; 8-bit images are clamped by Pillow
        view = random_colours(view, self.colour_strength, self.grayscale_probability)
        if isinstance(view, Image.Image):
            view = V.to_dtype(V.pil_to_tensor(view), torch.float32, scale=True)
        return random_stains(view, self.stain_strength) if self.stain_strength else view


def random_view(
    picture: Image.Image | Tensor, size: tuple[int, int], scale: tuple[float, float], poses: Poses
):
    """A random crop of `size`, flipped and turned. One that is turned on its side is cropped to the
    exchanged size before."""
    turns = int(torch.randint(4, ())) if poses.quarter_turns else 0
    is_on_its_side = turns % 2 == 1
    view = random_resized_crop(picture, size[::-1] if is_on_its_side else size, scale)
    if _happens(poses.horizontal_flip_probability):
        view = V.horizontal_flip(view)
    if poses.vertical_flip_probability and _happens(poses.vertical_flip_probability):
        view = V.vertical_flip(view)
    if not turns:
        return view
    if isinstance(view, Tensor):
        return view.rot90(turns, (-2, -1))
    return view.transpose(QUARTER_TURNS[turns])


def random_resized_crop(picture: Image.Image | Tensor, size: tuple[int, int], scale: tuple[float, float]):
    """A box of random area and aspect (Inception; torchvision's RandomResizedCrop), resized
    bicubically to `size`.

    The aspect is drawn around that of `size`, so a crop that is not square squashes objects no more
    than a square one does.
    """
    height, width = V.get_size(picture)
    top, left, box_height, box_width = random_box(height, width, scale, size[1] / size[0])
    return V.resized_crop(
        picture,
        top,
        left,
        box_height,
        box_width,
        list(size),
        interpolation=InterpolationMode.BICUBIC,
        antialias=True,
    )


def random_box(
    height: int, width: int, scale: tuple[float, float], middle: float = 1.0
) -> tuple[int, int, int, int]:
    """Top, left, height and width of a box: area uniform in `scale`, width / height log-uniform in
    3/4..4/3 times `middle`.

    After 10 misses it is the greatest central box.
    """
    log_low = math.log(CROP_ASPECT[0])
    log_high = math.log(CROP_ASPECT[1])
    for area_draw, aspect_draw, top_draw, left_draw in torch.rand(10, 4).tolist():
        area = height * width * (scale[0] + area_draw * (scale[1] - scale[0]))
        aspect = middle * math.exp(log_low + aspect_draw * (log_high - log_low))
        box_width = round(math.sqrt(area * aspect))
        box_height = round(math.sqrt(area / aspect))
        if 0 < box_width <= width and 0 < box_height <= height:
            top = int(top_draw * (height - box_height + 1))
            left = int(left_draw * (width - box_width + 1))
            return top, left, box_height, box_width
    return central_box(height, width, middle)


def central_box(height: int, width: int, middle: float) -> tuple[int, int, int, int]:
    """Top, left, height and width of the greatest central box whose aspect can be drawn around
    `middle`."""
    box_width = min(width, max(round(height * CROP_ASPECT[1] * middle), 1))
    box_height = min(height, max(round(width / (CROP_ASPECT[0] * middle)), 1))
    return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width


def random_colours(
    picture: Image.Image | Tensor, strength: float = 1.0, grayscale_probability: float = 0.2
) -> Image.Image | Tensor:
    """Colour jitter (brightness, contrast, saturation and hue in random order) with probability
    0.8, then perhaps grayscale.

    A PIL image of 8 bits, or float32 `[3, h, w]` of 0..1. With strength 0 no colour changes.
    """
    if _happens(JITTER_PROBABILITY):
        picture = _jittered_colours(picture, strength)
    if _happens(grayscale_probability):
        picture = V.rgb_to_grayscale(picture, num_output_channels=3)
    return picture


def _jittered_colours(picture: Image.Image | Tensor, strength: float) -> Image.Image | Tensor:
    """Brightness, contrast, saturation and hue changed in random order. The draws are the same for
    every strength."""
    factors = [
        _uniform(1 - strength * reach, 1 + strength * reach) for reach in (BRIGHTNESS, CONTRAST, SATURATION)
    ]
    turn = _uniform(-strength * HUE, strength * HUE)
    changes = [
        partial(V.adjust_brightness, brightness_factor=factors[0]),
        partial(V.adjust_contrast, contrast_factor=factors[1]),
        partial(V.adjust_saturation, saturation_factor=factors[2]),
        partial(V.adjust_hue, hue_factor=turn),
    ]
    order = torch.randperm(4).tolist()
    if not strength:  # a hue that is turned by 0 would still be rounded
        return picture
    for number in order:
        picture = changes[number](picture)
    return picture


def solarize(view: Tensor) -> Tensor:
    """RGB `[3, h, w]` of 0..1 with its bright values inverted."""
    return torch.where(view >= SOLARIZE_THRESHOLD, 1 - view, view)


def gaussian_blur(view: Tensor, sigma: float) -> Tensor:
    """`[C, h, w]` blurred as by torchvision's gaussian_blur (9 taps, reflected borders), with one
    matrix product per axis."""
    height, width = view.shape[-2:]
    rows = _blur_matrix(height, sigma)
    columns = _blur_matrix(width, sigma)
    return rows @ view @ columns.T


def _blur_matrix(side: int, sigma: float) -> Tensor:
    """The matrix `[side, side]` whose row i holds the weights of the pixels around i. Those beyond a
    border are reflected."""
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
