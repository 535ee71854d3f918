"""Which encoder a token looks at: shares of the attention, as numbers and as a picture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as V

from encoders.pictures.sheets import contact_sheet, heat
from fusion.connectors.cross_attention import VisionCrossAttentionLayer
from fusion.connectors.geometry import ImageLayout
from fusion.modeling_fused_vision import FusedVisionModel
from fusion.modeling_fusion_vlm import FusionVlmForConditionalGeneration
from vision_core.errors import UserError
from vision_core.images.any_image import image_tensor

TILE = 192


@contextmanager
def recorded_shares(model: nn.Module) -> Iterator[list[Tensor]]:
    """Inside, every vision cross-attention layer that runs appends its share per encoder, `[N,
    heads, encoders]`, to the list."""
    record: list[Tensor] = []

    def before(module: nn.Module, args: tuple[Any, ...]) -> None:
        args[1].shares = record

    def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        args[1].shares = None

    layers = [module for module in model.modules() if isinstance(module, VisionCrossAttentionLayer)]
    hooks = [
        hook
        for layer in layers
        for hook in (layer.register_forward_pre_hook(before), layer.register_forward_hook(after))
    ]
    try:
        yield record
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def attention_shares(model: FusedVisionModel | FusionVlmForConditionalGeneration, **inputs: Any) -> Tensor:
    """Shares of each encoder in the attention of each token, mean over layers and heads, `[N,
    encoders]`, rows summing to 1.

    inputs: what the model's processor returned. The N tokens are those of all images, newlines
    excepted. Layers within the language model count too. Raises UserError for a connector without
    cross-attention.
    """
    with recorded_shares(model) as record:
        model(**inputs)
    if not record:
        raise UserError(
            "attention shares are those of the connector sva, and of images; this model or input has none"
        )
    queries = max(len(each) for each in record)  # groups of another grid have other queries
    return torch.stack([each.mean(1) for each in record if len(each) == queries]).mean(0)


def share_picture(
    model: FusedVisionModel | FusionVlmForConditionalGeneration, images: Sequence[Any], inputs: dict[str, Any]
) -> Image.Image:
    """A row for each image, a column for each encoder: how much of a token's attention goes to it
    at every place, on one scale for the whole picture.

    images: those that `inputs`, the processor's output, was made of, in any form that it takes.
    Captions have the mean shares, and the shares of the darkest and brightest colour.
    """
    vision = model if isinstance(model, FusedVisionModel) else model.vision_model
    config = vision.config
    shares = attention_shares(model, **inputs).cpu()
    boxes = ImageLayout.of(inputs["image_sizes"], config.fit, config.mask_rule).boxes(config.grid)
    parts = shares.split([box.rows * box.columns for box in boxes])
    span = (shares.min().item(), shares.max().item())
    rows = []
    for image, part, box in zip(images, parts, boxes, strict=True):
        shown = V.to_pil_image(image_tensor(image))
        shown.thumbnail((TILE, TILE))
        tiles = [heat(each, span) for each in part.T.unflatten(1, (box.rows, box.columns))]
        rows.append([shown, *(tile.resize(shown.size, Image.Resampling.NEAREST) for tile in tiles)])
    means = shares.mean(0).tolist()
    captions = [
        f"{encoder.name.rpartition('/')[2]} {share:.0%}"
        for encoder, share in zip(vision.encoders, means, strict=True)
    ]
    return contact_sheet(rows, [f"dark {span[0]:.0%}, bright {span[1]:.0%}", *captions])
