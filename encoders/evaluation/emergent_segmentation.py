"""Emergent segmentation: how well the attention of the CLS token outlines objects that nobody has
taught it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from vision_core.errors import UserError
from vision_core.images.source import MASK_IGNORED

SHARE = 0.6


@dataclass(frozen=True)
class EmergentResult:
    """Jaccard indices in percent, means over the images.

    best_head: of the head that fits each image's mask best. It is chosen with the mask, an oracle,
    as DINO publishes it: higher than what any rule could reach that does not see masks. heads: of
    each head, always the same one. mean_attention: of the map averaged over the heads. whole_image,
    chance: of the whole image as prediction, and of a random choice of `share` of it. images,
    left_out: how many were judged, and how many show no object.
    """

    best_head: float
    heads: tuple[float, ...]
    mean_attention: float
    whole_image: float
    chance: float
    images: int
    left_out: int


def keep_mass(attention: Tensor, share: float = SHARE) -> Tensor:
    """The fewest patches of `[..., h, w]` that hold `share` of the attention, bool; the greatest
    first (Caron et al. 2021, section 4.2.2 and figure 4).

    Raises UserError for attention that is not finite, negative or without mass.
    """
    values, order = attention.flatten(-2).double().sort(dim=-1, descending=True, stable=True)
    mass = values.sum(-1, keepdim=True)
    if not torch.isfinite(values).all() or (values < 0).any() or (mass <= 0).any():
        raise UserError(
            "emergent segmentation: attention must be finite, not negative and not all zero; take it behind the softmax, in float32"
        )
    values = values / mass
    # a patch stays unless those before it hold the share already, up to the rounding of a softmax
    # in float32
    kept = values.cumsum(-1) - values < share - 1e-6
    return torch.zeros_like(kept).scatter(-1, order, kept).view(attention.shape)


def jaccard(predicted: Tensor, mask: Tensor) -> Tensor:
    """|predicted and mask| / |predicted or mask| of bool `[..., H, W]`, float64 in 0..1; NaN where
    both are empty."""
    intersection, union = (predicted & mask).sum((-2, -1)), (predicted | mask).sum((-2, -1))
    return intersection.double() / union


@torch.no_grad()
def emergent_jaccard(
    attention: Tensor, masks: Sequence[Tensor], share: float = SHARE, progress: bool = False
) -> EmergentResult:
    """Masks of the patches that hold `share` of the CLS token's attention against the objects of
    `masks` (DINO, figure 4: PASCAL VOC 2012).

    Args:
        attention: `[n, heads, h, w]`, of the CLS token to the patches of the whole image.
        masks: n of any size `[H, W]`: bool, or integers with 0 for background, 255 for what counts
            nowhere and other values for objects, taken together.

    The kept patches are enlarged to the mask's size by the nearest patch. Images that show no
    object are left out. Raises UserError for lengths that differ, attention that `keep_mass`
    refuses, or where no image shows an object.
    """
    if len(attention) != len(masks):
        raise UserError(
            f"emergent segmentation: {len(attention)} attention maps and {len(masks)} masks; give one mask per image"
        )
    rows = [
        _judge(maps, masks[index], share)
        for index, maps in enumerate(tqdm(attention, "emergent segmentation", disable=not progress))
        if _objects(masks[index])[0].any()
    ]
    if not rows:
        raise UserError("emergent segmentation: no mask shows an object; give other images")
    heads, *others = (100 * torch.stack(column) for column in zip(*rows, strict=True))
    best = heads.max(1).values.mean().item()
    return EmergentResult(
        best,
        tuple(heads.mean(0).tolist()),
        *(each.mean().item() for each in others),
        len(rows),
        len(masks) - len(rows),
    )


def _judge(maps: Tensor, mask: Tensor, share: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Jaccard of each head, of the heads' mean, of the whole image and of chance."""
    objects, counted = (each.to(maps.device) for each in _objects(mask))
    patches = keep_mass(torch.cat([maps, maps.mean(0, keepdim=True)]), share)
    predicted = F.interpolate(patches[None].float(), mask.shape, mode="nearest-exact")[0].bool()
    scores = jaccard(predicted & counted, objects)
    covered = objects.sum().double() / counted.sum()  # what the whole image scores
    # chance covers share * covered by accident, of share + covered in all
    return scores[:-1], scores[-1], covered, share * covered / (share + covered - share * covered)


def _objects(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Where there is an object, and what counts at all, bool `[H, W]`."""
    counted = torch.ones_like(mask, dtype=torch.bool) if mask.dtype == torch.bool else mask != MASK_IGNORED
    return (mask != 0) & counted, counted
