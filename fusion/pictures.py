"""Which encoder a token looks at: the shares of its attention, as numbers and as a picture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as V

from encoders.pictures.sheets import contact_sheet, heat
from fusion.connectors.cross_attention import JointSoftmax
from fusion.connectors.geometry import ImageLayout
from fusion.modeling_fused_vision import FusedVisionModel
from fusion.modeling_fusion_vlm import FusionVlmForConditionalGeneration
from vision_core.errors import UserError
from vision_core.images.any_image import image_tensor

TILE = 192  # longest side of a tile in pixels


@contextmanager
def recorded_shares(model: nn.Module) -> Iterator[list[Tensor]]:
    """Record attention: inside, every cross-attention that runs appends the share of each encoder,
    `[N, heads, encoders]`, to the list that this gives."""
    record: list[Tensor] = []

    def note_shares(softmax: JointSoftmax, args: tuple[Any, ...], weights: Tensor) -> None:
        record.append(softmax.shares(weights))

    softmaxes = [module for module in model.modules() if isinstance(module, JointSoftmax)]
    hooks = [softmax.register_forward_hook(note_shares) for softmax in softmaxes]
    try:
        yield record
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def attention_shares(model: FusedVisionModel | FusionVlmForConditionalGeneration, **inputs: Any) -> Tensor:
    """How much of each token's attention goes to each encoder: the mean over layers and heads,
    `[N, encoders]`, with rows that sum to 1.

    inputs: what the model's processor returned. The N tokens are those of all images, without
    newlines. Layers within the language model count too. Raises UserError for a connector without
    cross-attention.
    """
    with recorded_shares(model) as record:
        model(**inputs)
    if not record:
        raise UserError(
            "attention shares are those of the connector sva, and of images; this model or input has none"
        )
    queries = max(len(shares) for shares in record)  # groups of another grid have other queries
    of_layers = [shares.mean(1) for shares in record if len(shares) == queries]
    return torch.stack(of_layers).mean(0)


def share_picture(
    model: FusedVisionModel | FusionVlmForConditionalGeneration, images: Sequence[Any], inputs: dict[str, Any]
) -> Image.Image:
    """Draw a row for each image and a column for each encoder: how much of a token's attention goes
    to the encoder at every place, on one scale for the picture.

    images: those that `inputs`, the processor's output, was made of, in any form that the processor
    takes. The captions say the mean shares, and the shares of the darkest and brightest colour.
    """
    vision = model if isinstance(model, FusedVisionModel) else model.vision_model
    config = vision.config
    shares = attention_shares(model, **inputs).cpu()
    boxes = ImageLayout.of(inputs["image_sizes"], config.fit, config.mask_rule).boxes(config.grid)
    image_shares = shares.split([box.num_cells for box in boxes])
    darkest = shares.min().item()
    brightest = shares.max().item()
    rows = []
    for image, own_shares, box in zip(images, image_shares, boxes, strict=True):
        thumbnail = V.to_pil_image(image_tensor(image))
        thumbnail.thumbnail((TILE, TILE))
        row = [thumbnail]
        for share_map in own_shares.T.unflatten(1, (box.rows, box.columns)):
            tile = heat(share_map, (darkest, brightest))
            row.append(tile.resize(thumbnail.size, Image.Resampling.NEAREST))
        rows.append(row)
    captions = [f"dark {darkest:.0%}, bright {brightest:.0%}"]
    for encoder, mean in zip(vision.encoders, shares.mean(0).tolist(), strict=True):
        captions.append(f"{encoder.name.rpartition('/')[2]} {mean:.0%}")
    return contact_sheet(rows, captions)
