"""The features that tasks read: vectors and maps of frozen encoders."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from encoders.base import Encoder, LayerFeatures
from encoders.evaluation.copy_detection import gem
from encoders.modes import evaluating
from vision_core.randomness import numpy_generator

NUM_BLOCKS = 4  # the linear probe's greatest choice


def vector_features(encoder: Encoder, pixel_values: Tensor) -> dict[str, Tensor]:
    """Every vector of an image that a task reads, for `[B, C, H, W]`, each `[B, D]`, float32.

    pooled: the published image vector (not there where the model has none).
    patch_mean, gem: mean and GeM of the last layer's patches.
    block_1 to block_4: the CLS token of the last block, the one before, and so on, behind the final
        norm; without a CLS token the mean of the patches, and for the last block the published
        image vector.
    """
    last = encoder.num_layers
    features = encoder(pixel_values, range(max(1, last + 1 - NUM_BLOCKS), last + 1))
    patch_map = features.patch_map.float()
    vectors = {"patch_mean": patch_map.mean((2, 3)), "gem": gem(patch_map)}
    if features.pooled is not None:
        vectors["pooled"] = features.pooled.float()
    for back, layer in enumerate(reversed(features.layers), start=1):
        vectors[f"block_{back}"] = _layer_vector(layer)
    if features.cls is None and features.pooled is not None:
        vectors["block_1"] = vectors["pooled"]
    return vectors


def _layer_vector(layer: LayerFeatures) -> Tensor:
    """The CLS token of a layer, or the mean of its patches where there is none, `[B, C]`."""
    return layer.patch_map.float().mean((2, 3)) if layer.cls is None else layer.cls.float()


def map_features(encoder: Encoder, pixel_values: Tensor, layers: Iterable[int]) -> dict[str, Tensor]:
    """Maps `map_<number>` `[B, C, h, w]` and, where there is one, CLS tokens `cls_<number>` `[B,
    C]` of `layers`, float16: half the disk for 3 digits."""
    stored = {}
    for layer in encoder(pixel_values, tuple(layers)).layers:
        stored[f"map_{layer.number}"] = layer.patch_map.half()
        if layer.cls is not None:
            stored[f"cls_{layer.number}"] = layer.cls.half()
    return stored


def vector_bytes(encoder: Encoder) -> int:
    """The bytes that `vector_features` of one image take."""
    widths = list(encoder.layer_widths[-NUM_BLOCKS:])
    return 4 * (2 * encoder.width + (encoder.pooled_width or 0) + sum(widths))


def map_bytes(encoder: Encoder, size: tuple[int, int], layers: Iterable[int]) -> int:
    """The bytes that `map_features` of one image of `size` take. Where layers are stages, a map has
    half the rows of the one before."""
    rows, columns = encoder.grid(*size)
    are_stages = len(set(encoder.layer_widths)) > 1
    total = 0
    for number in encoder.layer_numbers(tuple(layers)):
        finer = 2 ** (encoder.num_layers - number) if are_stages else 1
        cells = rows * finer * columns * finer + (1 if encoder.has_cls else 0)
        total += 2 * encoder.layer_widths[number - 1] * cells
    return total


def depth_layers(num_layers: int) -> tuple[int, ...]:
    """Four layers at even distances, the last among them: 3, 6, 9, 12 of 12 (DINOv2, section 7.4);
    fewer where there are fewer."""
    count = min(4, num_layers)
    return tuple(round(num_layers * step / count) for step in range(1, count + 1))


def extract_features(
    encoder: Encoder, pixels: Tensor | Iterable[Tensor], batch_size: int = 128
) -> dict[str, Tensor]:
    """CLS token and mean of the patches of the last layer, on the CPU: {"cls": `[n, D]`,
    "patch_mean": `[n, D]`}, float32.

    It is for images in memory that are judged again and again while an encoder trains; its modules'
    training modes are put back afterwards. `pixels` are normalised `[n, C, H, W]`, which go through
    in batches of `batch_size`, or batches of that shape one after another.
    """
    batches = pixels.split(batch_size) if isinstance(pixels, Tensor) else pixels
    cls, patch_mean = [], []
    with evaluating(encoder):
        for batch in batches:
            features = encoder(batch.to(encoder.device))
            cls.append(features.cls.float().cpu())
            patch_mean.append(features.patch_map.float().mean((2, 3)).cpu())
    return {"cls": torch.cat(cls), "patch_mean": torch.cat(patch_mean)}


def draw_subset(num_images: int, count: int, *names: int | str) -> list[int]:
    """`count` different indices below `num_images` (all of them if there are fewer), a function of
    `names`."""
    return numpy_generator(*names).permutation(num_images)[:count].tolist()
