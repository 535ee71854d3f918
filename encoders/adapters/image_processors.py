"""The image processors of transformers as `ImageTransform`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal, NamedTuple

from transformers import AutoImageProcessor, DINOv3ViTImageProcessor

from encoders.preprocess import ImageTransform
from vision_core.errors import UserError, first_line

# PIL's numbers of interpolations
RESAMPLES = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}
# ConvNeXt's processor crops below this side, and squashes from there on
CONVNEXT_SQUASHED_FROM = 384


class View(NamedTuple):
    """The first three fields of an `ImageTransform` that say how an image is resized and cropped."""

    size: tuple[int, int]
    fit: Literal["crop", "squash"]
    margin: float = 1.0


def read_transform(name: str) -> ImageTransform:
    """The preprocessing that a checkpoint's image processor describes. Raises UserError where there
    is none that can be read."""
    try:
        processor = AutoImageProcessor.from_pretrained(name, trust_remote_code=False)
    except Exception as error:  # a broken processor raises whatever its reader does
        raise UserError(
            f"{name} has no image processor that can be read ({first_line(error)}); "
            "add its preprocessor_config.json"
        ) from None
    return transform_from_processor(processor)


def transform_from_processor(processor: Any) -> ImageTransform:
    """A transformers image processor as an `ImageTransform`, to the pixel for square sizes and
    images of any size.

    NaFlex keeps an image's aspect ratio, so images of a batch have different grids; here all get
    the square one.

    Raises UserError for sizes of another kind than sides, shorter side and crop, or patches.
    """
    said = processor.to_dict()
    view = _view(said)
    mean = [0.0]
    std = [1.0]
    if said.get("do_normalize", True):
        mean = said["image_mean"]
        std = said["image_std"]
    transform = ImageTransform(
        size=view.size,
        mean=tuple(mean),
        std=tuple(std),
        fit=view.fit,
        margin=view.margin,
        interpolation=RESAMPLES[int(said.get("resample", 3))],
        preprocess="published",
        resampler="tensor_float" if isinstance(processor, DINOv3ViTImageProcessor) else "tensor",
    )
    in_own_scale = not said.get("do_rescale", True)
    return replace(transform, pictures=not in_own_scale, pixel_options=said.get("pixel_options", ""))


def _view(said: dict[str, Any]) -> View:
    """How a processor that says this resizes and crops."""
    size = dict(said.get("size") or {})
    crop = said.get("crop_size") if said.get("do_center_crop") else None
    if crop:
        return _cropped(size, crop)
    if "crop_pct" in said and "shortest_edge" in size:
        return _convnext(size["shortest_edge"], said["crop_pct"])
    if "height" in size:
        return View((size["height"], size["width"]), "squash")
    if "max_num_patches" in said:  # NaFlex takes any grid of so many patches; the square one stands for all
        side = int(said["max_num_patches"] ** 0.5) * said["patch_size"]
        return View((side, side), "squash")
    if "shortest_edge" in size:
        return View((size["shortest_edge"], size["shortest_edge"]), "crop")
    raise UserError(
        f"an image processor that resizes to {size} is not understood; give the encoder an image size"
    )


def _cropped(size: dict[str, int], crop: dict[str, int]) -> View:
    """A resize to `size`, then a crop of its centre."""
    target = (crop["height"], crop["width"])
    if "shortest_edge" in size:
        return View(target, "crop", size["shortest_edge"] / min(target))
    margin = size["height"] / target[0]
    if round(margin * target[1]) != size["width"]:
        raise UserError(
            f"an image processor that resizes to {size} and crops {crop} is not understood; "
            "give the encoder an image size"
        )
    return View(target, "squash", margin)


def _convnext(side: int, crop_share: float) -> View:
    """The rule of ConvNeXt's processor: small sizes are a crop of this share, large ones squashed."""
    if side >= CONVNEXT_SQUASHED_FROM:
        return View((side, side), "squash")
    return View((side, side), "crop", int(side / crop_share) / side)
