"""Turn images into the pixels of every encoder of a fused model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as V
from transformers import BatchFeature
from transformers.image_processing_backends import TorchvisionBackend
from transformers.image_utils import make_flat_list_of_images

from encoders.preprocess import ImageTransform
from fusion.connectors.base import num_image_tokens
from fusion.connectors.geometry import Fit, image_box
from fusion.pixel_layout import join_views, split_views
from fusion.stub import ClassesOfAPackage
from vision_core.errors import UserError
from vision_core.images.any_image import image_tensor


def fitted_view(image: Tensor, transform: ImageTransform, fit: Fit) -> Tensor:
    """Turn an image `[C, H, W]` uint8 into the square `[C, side, side]` that an encoder sees.

    fit: `pad` puts the image in the middle of a square of the encoder's mean colour and resizes
    that to the encoder's side; `squash` resizes the image. The long side is resized before the
    padding is put on, which gives the same square without a canvas of long side by long side.
    """
    side = transform.size[0]
    mode = InterpolationMode(transform.interpolation)
    height, width = image.shape[-2:]
    if fit == "pad" and height != width:
        is_wide = width > height
        size = [height, side] if is_wide else [side, width]
        image = V.resize(image, size, interpolation=mode, antialias=True)
        missing = abs(height - width)
        before = missing // 2
        behind = missing - before
        borders = [0, before, 0, behind] if is_wide else [before, 0, behind, 0]  # left, top, right, bottom
        image = V.pad(image, borders, fill=[int(value * 255) for value in transform.mean])
    if tuple(image.shape[-2:]) == (side, side):
        return image
    return V.resize(image, [side, side], interpolation=mode, antialias=True)


class FusionImageProcessor(ClassesOfAPackage, TorchvisionBackend):
    """Turns images of any size into the pixels of every encoder.

    Args:
        transforms: for each encoder an `ImageTransform` as a dict: the side of its square, mean,
            std, interpolation.
        fit, mask_rule: see `fusion.connectors.geometry.image_box`.
        grid, tokens_per_cell, newline, fixed_tokens: attributes of the connector, by which
            `num_tokens` knows how many tokens an image will have.

    It is called with an image or a list of images, in any form that
    `vision_core.images.any_image.image_tensor` takes. It returns `image_sizes` `[B, 2]` and
    `pixel_values` `[B, P]`: a row has an image's pixels for all encoders (see
    `fusion.pixel_layout`); `views` takes them apart.
    """

    model_input_names = ["pixel_values", "image_sizes"]

    def __init__(
        self,
        transforms: Sequence[dict[str, Any]] = (),
        fit: str = "pad",
        mask_rule: str = "exact",
        grid: int = 24,
        tokens_per_cell: int = 1,
        newline: bool = True,
        fixed_tokens: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.transforms = [dict(each) for each in transforms]
        self.fit = fit
        self.mask_rule = mask_rule
        self.grid = grid
        self.tokens_per_cell = tokens_per_cell
        self.newline = newline
        self.fixed_tokens = fixed_tokens

    def preprocess(self, images: Any, return_tensors: str | None = "pt", **kwargs: Any) -> BatchFeature:
        """Make `pixel_values` and `image_sizes`, see the class.

        Raises UserError where there are no images, and for options: the preprocessing belongs to
        the encoders.
        """
        options = sorted(name for name, value in kwargs.items() if value is not None)
        if options:
            raise UserError(
                f"{', '.join(options)}: this processor takes no options, its encoders' preprocessing is fixed; "
                "leave them out"
            )
        if return_tensors not in (None, "pt"):
            raise UserError(f"return_tensors={return_tensors!r}: pixels are torch tensors; use 'pt'")
        tensors = make_flat_list_of_images(self.fetch_images(images))
        if not tensors:
            raise UserError("no images were given; leave images out for text alone")
        views = []
        for values in self.transforms:
            transform = ImageTransform.from_dict(values)
            squares = torch.stack([fitted_view(tensor, transform, self.fit) for tensor in tensors])
            views.append(transform.pixels(squares))  # [B, C, side, side]
        sizes = torch.tensor([list(tensor.shape[-2:]) for tensor in tensors])
        return BatchFeature({"pixel_values": join_views(views), "image_sizes": sizes})

    def views(self, pixel_values: Tensor) -> list[Tensor]:
        """Take `pixel_values` `[B, P]` apart into what each encoder sees, `[B, C, side, side]`.

        Raises UserError where `pixel_values` was made for other encoders.
        """
        sizes = [ImageTransform.from_dict(values).size for values in self.transforms]
        return split_views(pixel_values, sizes)

    def num_tokens(self, height: int, width: int) -> int:
        """How many tokens an image of this size will have."""
        if self.fixed_tokens:
            return self.fixed_tokens
        box = image_box(height, width, self.grid, self.fit, self.mask_rule)
        return num_image_tokens(box, self.tokens_per_cell, self.newline)

    def fetch_images(self, images: Any) -> Any:
        """Read images of any form as `[3, H, W]` uint8, in lists as they were given; a batch
        `[B, ...]` becomes a list.

        transformers' processors and pipelines call this with the images beside a text, or of chat
        messages, before they count them. It replaces a loader that decodes files with another
        library, ignores the EXIF orientation of PIL images, clips 16-bit grey, and downloads.
        Raises UserError, see `image_tensor`.
        """
        is_batch = isinstance(images, np.ndarray | Tensor) and images.ndim > 3
        if isinstance(images, list | tuple) or is_batch:
            return [self.fetch_images(image) for image in images]
        return image_tensor(images)
