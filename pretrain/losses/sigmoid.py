"""SigLIP's loss asks of every pair of an image and a text whether it matches (Zhai et al. 2023,
equation 1)."""

import torch
from torch import Tensor
from torch.nn import functional as F

from vision_core.processes.distributed import gather_rows, rank


def sigmoid_loss(images: Tensor, texts: Tensor, logit_scale: Tensor, logit_bias: Tensor) -> Tensor:
    """The loss of this process's images with the texts of all processes, a scalar. Its mean over the
    processes is the loss of the global batch.

        loss = 0
        for i, image in enumerate(images):
            for j, text in enumerate(texts):
                sign = 1 if i == j else -1
                logit = exp(logit_scale) * dot(image, text) + logit_bias
                loss -= log(sigmoid(sign * logit)) / len(images)

    Args:
        images, texts: `[B, D]` of length 1. Row i of one belongs to row i of the other; B is the
            same on every process.
        logit_scale, logit_bias: one number each.
    """
    texts_of_all = gather_rows(texts)  # [B of all processes, D]
    # in half precision logits around the bias of -10 are rounded to sixteenths
    with torch.autocast(images.device.type, enabled=False):
        logits = logit_scale.exp() * images @ texts_of_all.T + logit_bias  # [B, B of all processes]
    signs = torch.full_like(logits, -1.0)
    own = torch.arange(len(images), device=images.device)
    signs[own, rank() * len(images) + own] = 1.0
    return -F.logsigmoid(signs * logits).sum() / len(images)
