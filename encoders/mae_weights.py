"""How a new masked autoencoder starts (He et al. 2021, appendix A.1): positions are fixed sines and
cosines, matrices are Xavier-uniform."""

import torch
from torch import Tensor, nn
from transformers import ViTMAEForPreTraining

TOKEN_STD = 0.02
WAVELENGTH = 10000.0


def initialise_mae(model: ViTMAEForPreTraining) -> None:
    """Initialise a model in place, with torch's global generator.

    transformers leaves the positions of a new model at zero, and without them all hidden patches
    look alike.
    """
    embeddings = model.vit.embeddings
    decoder = model.decoder
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            # the convolution of the patches is one matrix product for each patch
            nn.init.xavier_uniform_(module.weight.view(len(module.weight), -1))
            nn.init.zeros_(module.bias)
    for token in (embeddings.cls_token, decoder.mask_token):
        nn.init.normal_(token, std=TOKEN_STD)
    for positions in (embeddings.position_embeddings, decoder.decoder_pos_embed):
        positions.data.copy_(sincos_positions(positions.shape[1] - 1, positions.shape[2]))


def sincos_positions(num_patches: int, width: int) -> Tensor:
    """Positions `[1, 1 + num_patches, width]`: zeros for the CLS token, then a square grid row by row.

    The vector of a patch has two halves, for its column first and then for its row, as in the
    released weights. With f_k = 10000 ** (-k / (width / 4)) each half is

        sin(place * f_0), sin(place * f_1), ..., cos(place * f_0), cos(place * f_1), ...
    """
    side = round(num_patches**0.5)
    quarter = width // 4
    assert side * side == num_patches and 4 * quarter == width, f"{num_patches} patches of width {width}"
    frequencies = WAVELENGTH ** (-torch.arange(quarter, dtype=torch.float64) / quarter)
    angles = torch.arange(side, dtype=torch.float64)[:, None] * frequencies
    line = torch.cat([angles.sin(), angles.cos()], dim=1)
    grid = torch.cat([line.repeat(side, 1), line.repeat_interleave(side, dim=0)], dim=1)
    return torch.cat([torch.zeros(1, width), grid.float()])[None]
