"""Emergent segmentation: how well the attention of the CLS token outlines objects that nobody has
taught it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from encoders.attention import MASS_SHARE, keep_mass
from vision_core.errors import UserError
from vision_core.images.source import MASK_IGNORED


@dataclass(frozen=True)
class EmergentResult:
    """Jaccard indices in percent, means over the images.

    Attributes:
        best_head: of the head that fits each image's mask best. It is chosen with the mask, an
            oracle, as DINO publishes it: higher than what any rule could reach that does not see
            masks.
        heads: of each head, always the same one.
        mean_attention: of the map averaged over the heads.
        whole_image: of the whole image as prediction.
        chance: of a random choice of `share` of the image.
        images: how many were judged.
        left_out: how many show no object.
    """

    best_head: float
    heads: tuple[float, ...]
    mean_attention: float
    whole_image: float
    chance: float
    images: int
    left_out: int


class ImageJaccards(NamedTuple):
    """Jaccard indices of one image in 0..1: of each head `[heads]`, and of the other predictions as
    in `EmergentResult`."""

    heads: Tensor
    mean_attention: Tensor
    whole_image: Tensor
    chance: Tensor


def jaccard(predicted: Tensor, mask: Tensor) -> Tensor:
    """|predicted and mask| / |predicted or mask| of bool `[..., H, W]`, float64 in 0..1; NaN where
    both are empty."""
    intersection = (predicted & mask).sum((-2, -1))
    union = (predicted | mask).sum((-2, -1))
    return intersection.double() / union


@torch.no_grad()
def emergent_jaccard(
    attention: Tensor, masks: Sequence[Tensor], share: float = MASS_SHARE, progress: bool = False
) -> EmergentResult:
    """Jaccard indices of the patches that hold `share` of the CLS token's attention and the objects
    of `masks` (DINO, figure 4: PASCAL VOC 2012).

    Args:
        attention: `[n, heads, h, w]`, of the CLS token to the patches of the uncropped image.
        masks: n of any size `[H, W]`: bool, or integers with 0 for background, 255 for what counts
            nowhere and other values for objects, taken together.

    The kept patches are enlarged to the mask's size by the nearest patch. Images that show no
    object are left out. Raises UserError for lengths that differ, attention that `keep_mass`
    refuses, or where no image shows an object.
    """
    if len(attention) != len(masks):
        raise UserError(
            f"emergent segmentation: {len(attention)} attention maps and {len(masks)} masks; "
            "give one mask per image"
        )
    judged = []
    for index, maps in enumerate(tqdm(attention, "emergent segmentation", disable=not progress)):
        if _objects(masks[index])[0].any():
            judged.append(_judge(maps, masks[index], share))
    if not judged:
        raise UserError("emergent segmentation: no mask shows an object; give other images")
    heads, *others = (100 * torch.stack(column) for column in zip(*judged, strict=True))
    mean_attention, whole_image, chance = (each.mean().item() for each in others)
    return EmergentResult(
        best_head=heads.max(1).values.mean().item(),
        heads=tuple(heads.mean(0).tolist()),
        mean_attention=mean_attention,
        whole_image=whole_image,
        chance=chance,
        images=len(judged),
        left_out=len(masks) - len(judged),
    )


def _judge(maps: Tensor, mask: Tensor, share: float) -> ImageJaccards:
    """The Jaccard indices of attention maps `[heads, h, w]` and a mask `[H, W]`."""
    objects, counted = (each.to(maps.device) for each in _objects(mask))
    patches = keep_mass(torch.cat([maps, maps.mean(0, keepdim=True)]), share)
    predicted = F.interpolate(patches[None].float(), mask.shape, mode="nearest-exact")[0].bool()
    scores = jaccard(predicted & counted, objects)
    covered = objects.sum().double() / counted.sum()
    # chance covers share * covered by accident, of share + covered in all
    chance = share * covered / (share + covered - share * covered)
    return ImageJaccards(scores[:-1], scores[-1], covered, chance)


def _objects(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Where there is an object, and what counts at all, bool `[H, W]`."""
    counted = torch.ones_like(mask, dtype=torch.bool) if mask.dtype == torch.bool else mask != MASK_IGNORED
    return (mask != 0) & counted, counted
