"""Jitters the stains of histology: the amounts of haematoxylin, eosin and DAB in an RGB image.

Light passes through stains one after the other, so their optical densities add up:

    -ln(rgb) = stains @ HED    (Beer and Lambert)

The rows of the matrix are the colours measured by Ruifrok and Johnston 2001 (the matrix of
scikit-image's rgb2hed). The change of each stain is that of Tellez et al. 2018: s -> alpha * s +
beta.
"""

import torch
from torch import Tensor

# Optical density in red, green and blue of a unit of haematoxylin, eosin and DAB.
HED = torch.tensor([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
TO_HED = torch.linalg.inv(HED.double()).float()
DARKEST = 1e-6  # of light that passes; as in scikit-image


def random_stains(view: Tensor, strength: float) -> Tensor:
    """`[3, h, w]` of 0..1 with other amounts of each stain: alpha uniform in 1 +- strength, beta in
    +- strength.

    Amounts are optical densities to the base e: a beta of 0.05 takes about a twentieth of the
    light. scikit-image's numbers are these divided by 13.8, -ln of its darkest value.
    """
    alpha, beta = strength * (2 * torch.rand(2, 3) - 1)
    return change_stains(view, 1 + alpha, beta)


def change_stains(view: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """`[3, h, w]` of 0..1 with each stain s changed to alpha * s + beta. alpha, beta: `[3]`, for
    haematoxylin, eosin and DAB.

    Negative amounts, which colours outside the stains' range have, are kept: with alpha 1 and beta
    0 the image stays as it is.
    """
    density = -view.clamp(min=DARKEST).log()
    stains = torch.einsum("chw,cs->shw", density, TO_HED)
    changed = alpha.view(3, 1, 1) * stains + beta.view(3, 1, 1)
    return (-torch.einsum("shw,sc->chw", changed, HED)).exp().clamp(0, 1)
