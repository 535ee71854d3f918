"""One image, made into the pixels of every encoder of a fused model."""

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
    """`[C, H, W]` uint8 as the square that an encoder sees, `[C, side, side]`.

    fit `pad`: in the middle of a square of the encoder's mean colour, resized to the encoder's
    side; `squash`: resized to it. The long side is resized before the padding is put on, which
    gives the same square and no canvas of long side by long side.
    """
    side, mode = transform.size[0], InterpolationMode(transform.interpolation)
    height, width = image.shape[-2:]
    if fit == "pad" and height != width:
        image = V.resize(
            image, [height, side] if width > height else [side, width], interpolation=mode, antialias=True
        )
        before, all_of_it = abs(height - width) // 2, abs(height - width)
        borders = [0, before, 0, all_of_it - before] if width > height else [before, 0, all_of_it - before, 0]
        image = V.pad(image, borders, fill=[int(value * 255) for value in transform.mean])
    if tuple(image.shape[-2:]) == (side, side):
        return image
    return V.resize(image, [side, side], interpolation=mode, antialias=True)


class FusionImageProcessor(ClassesOfAPackage, TorchvisionBackend):
    """Images of any size to the pixels of every encoder.

    Args:
        transforms: of each encoder, an `ImageTransform` as a dict: the side of its square, mean,
            std, interpolation.
        fit, mask_rule: see `fusion.connectors.geometry.image_box`.
        grid, tokens_per_cell, newline, fixed_tokens: of the connector; with them `num_tokens` knows
            how many tokens an image will have.

    Called with an image or a list of them, in any form that
    `vision_core.images.any_image.image_tensor` takes, it returns `image_sizes` `[images, 2]` and
    `pixel_values` `[images, P]`: a row has an image's pixels for all encoders (see
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
        self.transforms, self.fit, self.mask_rule = ([dict(each) for each in transforms], fit, mask_rule)
        self.grid, self.tokens_per_cell, self.newline, self.fixed_tokens = (
            grid,
            tokens_per_cell,
            newline,
            fixed_tokens,
        )

    def preprocess(self, images: Any, return_tensors: str | None = "pt", **kwargs: Any) -> BatchFeature:
        """See the class. Raises UserError for no images and for options; the processing belongs to
        the encoders."""
        known = {name: value for name, value in kwargs.items() if value is not None}
        if known:
            raise UserError(
                f"{', '.join(sorted(known))}: this processor takes no options, its encoders' preprocessing is fixed; leave them out"
            )
        if return_tensors not in (None, "pt"):
            raise UserError(f"return_tensors={return_tensors!r}: pixels are torch tensors; use 'pt'")
        views = make_flat_list_of_images(self.fetch_images(images))
        if not views:
            raise UserError("no images were given; leave images out for text alone")
        of_encoders = []
        for values in self.transforms:
            transform = ImageTransform.from_dict(values)
            squares = torch.stack([fitted_view(view, transform, self.fit) for view in views])
            of_encoders.append(transform.pixels(squares))
        sizes = torch.tensor([list(view.shape[-2:]) for view in views])
        return BatchFeature({"pixel_values": join_views(of_encoders), "image_sizes": sizes})

    def views(self, pixel_values: Tensor) -> list[Tensor]:
        """What each encoder sees, `[images, C, side, side]`, of `pixel_values` `[images, P]`.

        Raises UserError where `pixel_values` was made for other encoders.
        """
        return split_views(
            pixel_values, [ImageTransform.from_dict(values).size for values in self.transforms]
        )

    def num_tokens(self, height: int, width: int) -> int:
        """How many tokens an image of this size will have."""
        if self.fixed_tokens:
            return self.fixed_tokens
        return num_image_tokens(
            image_box(height, width, self.grid, self.fit, self.mask_rule), self.tokens_per_cell, self.newline
        )

    def fetch_images(self, images: Any) -> Any:
        """Images of any form as `[3, H, W]` uint8, in lists as they were given; a batch `[B, ...]`
        becomes a list.

        transformers' processors and pipelines call this with the images beside a text, or of chat
        messages, before they count them. It replaces a loader that decodes files with another
        library, leaves EXIF orientation of PIL images alone, clips 16-bit grey, and downloads.
        Raises UserError, see `image_tensor`.
        """
        is_batch = isinstance(images, np.ndarray | Tensor) and images.ndim > 3
        if isinstance(images, list | tuple) or is_batch:
            return [self.fetch_images(image) for image in images]
        return image_tensor(images)
