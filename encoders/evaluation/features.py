"""Frozen features of transformers' vision models."""

import torch
from torch import Tensor, nn

from vision_core.randomness import numpy_generator


@torch.no_grad()
def extract_features(model: nn.Module, pixels: list[Tensor] | Tensor, batch_size: int = 256) -> dict[str, Tensor]:
    """Features of `[n, C, H, W]` normalised pixels: {"cls": [n, D], "patch_mean": [n, D]}, float32, after the final norm.

    `model` is a Dinov2Model or Dinov2WithRegistersModel; its training mode is put back afterwards.
    """
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    tokens = num_prefix_tokens(model)
    parts = []
    for batch in torch.as_tensor(pixels).split(batch_size):
        hidden = model(batch.to(device)).last_hidden_state.float()
        parts.append((hidden[:, 0].cpu(), hidden[:, tokens:].mean(1).cpu()))
    model.train(was_training)
    cls, patch_mean = (torch.cat(part) for part in zip(*parts, strict=True))
    return {"cls": cls, "patch_mean": patch_mean}


def num_prefix_tokens(model: nn.Module) -> int:
    """CLS and registers, which stand before the patch tokens."""
    return 1 + (model.config.num_register_tokens if model.config.model_type == "dinov2_with_registers" else 0)


def draw_subset(num_images: int, count: int, *names: int | str) -> list[int]:
    """`count` different indices below `num_images` (all of them if there are fewer), a function of `names`."""
    return numpy_generator(*names).permutation(num_images)[:count].tolist()
