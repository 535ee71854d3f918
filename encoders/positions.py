"""How DINOv2's position embeddings are resampled for a size that they were not stored for, and the
two options that choose it."""

from __future__ import annotations

from collections.abc import Mapping
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vision_core.errors import UserError
from vision_core.source_text import true_or_false

MODEL_TYPES = ("dinov2", "dinov2_with_registers")


def read_offset(options: Mapping[str, str], key: str, name: str) -> float:
    """The value of `position_offset` in a source text. Raises UserError where it is not a number."""
    try:
        return float(options[key])
    except ValueError:
        raise UserError(f"{name}: {key}={options[key]} cannot be read; write a number, such as 0.1") from None


# option -> what reads its value in a source text
POSITION_OPTIONS = {"position_antialias": true_or_false, "position_offset": read_offset}


def refuse_position_options(options: Mapping[str, Any], source: str) -> None:
    """Raise UserError where an encoder of another library is given one of these options."""
    for name in POSITION_OPTIONS:
        if options.get(name) is not None:
            raise UserError(f"{name} is for DINOv2 in transformers, not for {source}; leave it out")


def set_position_interpolation(model: nn.Module, antialias: bool | None, offset: float | None) -> None:
    """Let a Dinov2Model or Dinov2WithRegistersModel resample its positions with these choices; the
    model is changed.

    Args:
        antialias: whether the bicubic resampling is antialiased. None leaves it to the class:
            Dinov2Model does without, Dinov2WithRegistersModel antialiases.
        offset: the scale of each axis is (patches + offset) / stored patches, as in
            facebookresearch/dinov2 `vision_transformer.py: interpolate_pos_encoding`: 0.1 in all
            models that were published without registers, 0 in those with registers. None and 0 take
            the size itself, as transformers does.

    Raises UserError for other models, and for an offset that is not between 0 and 1.
    """
    if antialias is None and offset is None:
        return
    model_type = model.config.model_type
    if model_type not in MODEL_TYPES:
        name = "position_offset" if antialias is None else "position_antialias"
        raise UserError(f"{name} is for {' and '.join(MODEL_TYPES)}, not {model_type}; leave it out")
    if offset is not None and not 0 <= offset < 1:
        raise UserError(
            f"position_offset={offset} is not possible; the published one is 0.1, and 0 means none"
        )
    if antialias is None:
        antialias = model_type == "dinov2_with_registers"

    def interpolate(embeddings: nn.Module, tokens: Tensor, height: int, width: int) -> Tensor:
        """Take the place of `embeddings.interpolate_pos_encoding`."""
        grid = (height // embeddings.patch_size, width // embeddings.patch_size)
        return resampled_positions(embeddings.position_embeddings, grid, antialias, offset or 0.0)

    model.embeddings.interpolate_pos_encoding = MethodType(interpolate, model.embeddings)


def resampled_positions(positions: Tensor, grid: tuple[int, int], antialias: bool, offset: float) -> Tensor:
    """Resample `[1, 1 + side * side, D]`, CLS first, to `[1, 1 + grid_height * grid_width, D]`:
    bicubic, in float32. The CLS position stays as it is."""
    side = int((positions.shape[1] - 1) ** 0.5)
    if grid == (side, side):
        return positions
    stored = positions[:, 1:].float().transpose(1, 2).unflatten(-1, (side, side))
    if offset:
        scale = ((grid[0] + offset) / side, (grid[1] + offset) / side)
        patches = F.interpolate(stored, scale_factor=scale, mode="bicubic", antialias=antialias)
    else:
        patches = F.interpolate(stored, size=grid, mode="bicubic", antialias=antialias)
    return torch.cat([positions[:, :1], patches.flatten(2).transpose(1, 2).to(positions.dtype)], dim=1)
