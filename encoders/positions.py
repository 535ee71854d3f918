"""How DINOv2's position embeddings are resampled for a size that they were not stored for."""

from __future__ import annotations

from types import MethodType

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vision_core.errors import UserError

MODEL_TYPES = ("dinov2", "dinov2_with_registers")


def set_position_interpolation(model: nn.Module, antialias: bool | None, offset: float | None) -> None:
    """Let a Dinov2Model or Dinov2WithRegistersModel resample its positions with these choices; the
    model is changed.

    Args:
        antialias: of the bicubic resampling; None leaves the class its own way, without for
            Dinov2Model and with for Dinov2WithRegistersModel.
        offset: what the scale of each axis is computed with, (patches + offset) / stored patches,
            as in facebookresearch/dinov2 `vision_transformer.py: interpolate_pos_encoding`: 0.1 in
            all models published without registers, 0 in those with registers. None and 0 take the
            size itself, as transformers does.

    Raises UserError for other models, and for an offset that is not between 0 and 1.
    """
    if antialias is None and offset is None:
        return
    if model.config.model_type not in MODEL_TYPES:
        name = "position_offset" if antialias is None else "position_antialias"
        raise UserError(
            f"{name} is for {' and '.join(MODEL_TYPES)}, not {model.config.model_type}; leave it out"
        )
    if offset is not None and not 0 <= offset < 1:
        raise UserError(
            f"position_offset={offset} is not possible; the published one is 0.1, and 0 means none"
        )
    if antialias is None:
        antialias = model.config.model_type == "dinov2_with_registers"

    def interpolate(embeddings: nn.Module, tokens: Tensor, height: int, width: int) -> Tensor:
        """In place of `embeddings.interpolate_pos_encoding`."""
        patch_size = embeddings.patch_size
        return resampled_positions(
            embeddings.position_embeddings,
            (height // patch_size, width // patch_size),
            antialias,
            offset or 0.0,
        )

    model.embeddings.interpolate_pos_encoding = MethodType(interpolate, model.embeddings)


def resampled_positions(positions: Tensor, grid: tuple[int, int], antialias: bool, offset: float) -> Tensor:
    """`[1, 1 + side * side, D]`, CLS first, as `[1, 1 + grid_height * grid_width, D]`: bicubic, in
    float32, CLS untouched."""
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
