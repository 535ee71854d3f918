"""Frozen features of transformers' vision models."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from vision_core.errors import UserError
from vision_core.randomness import numpy_generator


def extract_features(model: nn.Module, pixels: Tensor | Iterable[Tensor], batch_size: int = 128) -> dict[str, Tensor]:
    """Features after the final norm, on the CPU: {"cls": [n, D], "patch_mean": [n, D]}, float32.

    Args:
        model: Dinov2Model or Dinov2WithRegistersModel; the training mode of each of its modules is put back afterwards.
        pixels: normalised `[n, C, H, W]`, which goes through in batches of `batch_size`, or batches of that shape one after another.
    """
    device = next(model.parameters()).device
    skip = num_prefix_tokens(model)
    cls, patch_mean = [], []
    with evaluating(model):
        for batch in pixels.split(batch_size) if isinstance(pixels, Tensor) else pixels:
            tokens = model(batch.to(device)).last_hidden_state.float()
            cls.append(tokens[:, 0].cpu())
            patch_mean.append(tokens[:, skip:].mean(1).cpu())
    return {"cls": torch.cat(cls), "patch_mean": torch.cat(patch_mean)}


def num_prefix_tokens(model: nn.Module) -> int:
    """How many tokens, CLS and registers, stand before the patch tokens. Raises UserError for another kind of model."""
    if model.config.model_type == "dinov2":
        return 1
    if model.config.model_type == "dinov2_with_registers":
        return 1 + model.config.num_register_tokens
    raise UserError(f"the model is a {model.config.model_type}; dinov2 and dinov2_with_registers are understood")


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and no gradients inside; afterwards every module is in the mode it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def draw_subset(num_images: int, count: int, *names: int | str) -> list[int]:
    """`count` different indices below `num_images` (all of them if there are fewer), a function of `names`."""
    return numpy_generator(*names).permutation(num_images)[:count].tolist()
