"""Builds the backbone: transformers' own Dinov2 or Dinov2WithRegisters, initialised as the published
DINOv2 is."""

import math

import torch
from torch import nn
from transformers import Dinov2Config, Dinov2Model, Dinov2WithRegistersConfig, Dinov2WithRegistersModel

from encoders.positions import set_position_interpolation

Backbone = Dinov2Model | Dinov2WithRegistersModel


def build_backbone(
    hidden_size: int,
    num_hidden_layers: int,
    num_attention_heads: int,
    *,
    patch_size: int,
    image_size: int,
    num_channels: int = 3,
    num_register_tokens: int = 0,
    use_swiglu_ffn: bool = False,
    layerscale_value: float = 1e-5,
    initializer_range: float = 0.02,
    register_init_std: float = 0.02,
    position_offset: float = 0.0,
) -> Backbone:
    """A freshly initialised backbone (random draws from torch's global generator).

    Without registers it is a `Dinov2Model`, with them a `Dinov2WithRegistersModel`; the two
    interpolate their position embeddings differently (the second with antialias), as the two
    families of released weights do. Its own drop path is 0: `crop_groups.forward_crop_groups` does
    stochastic depth, so one config describes student and teacher.

    Args:
        image_size: pixels of a side of the stored, square position grid; a multiple of
            `patch_size`.
        initializer_range: std of the linear layers; the published 0.02 suits widths of 384 and
            more.
        position_offset: of the resampling of positions for other crop sizes, see
            `encoders/positions.py`. The config of the backbone says it where it is not 0, for
            `load_encoder`; transformers itself does not know it.
        use_swiglu_ffn: SwiGLU of hidden size ((int(4D * 2/3) + 7) // 8) * 8 in place of the GELU
            MLP.
    """
    settings = {
        "hidden_size": hidden_size,
        "num_hidden_layers": num_hidden_layers,
        "num_attention_heads": num_attention_heads,
        "patch_size": patch_size,
        "image_size": image_size,
        "num_channels": num_channels,
        "use_swiglu_ffn": use_swiglu_ffn,
        "layerscale_value": layerscale_value,
        "initializer_range": initializer_range,
        "attn_implementation": "sdpa",
    }
    if num_register_tokens:
        config = Dinov2WithRegistersConfig(num_register_tokens=num_register_tokens, **settings)
        backbone = Dinov2WithRegistersModel(config)
    else:
        backbone = Dinov2Model(Dinov2Config(**settings))
    if position_offset:
        backbone.config.position_offset = position_offset
        set_position_interpolation(backbone, antialias=None, offset=position_offset)
    initialise_backbone(backbone, register_init_std)
    return backbone


@torch.no_grad()
def initialise_backbone(backbone: Backbone, register_init_std: float) -> None:
    """Initialise as published (DINOv2 `vision_transformer.py`), which is not as transformers does.

    linear layers         truncated normal of std `config.initializer_range` (published 0.02), bias 0
    patch convolution     PyTorch's default
    CLS token             normal of std 1e-6
    registers             normal of `register_init_std`; the published 1e-6 leaves them equal for
                          thousands of steps, DINOv3 has 0.02
    position embeddings   truncated normal of std 0.02
    mask token            0
    LayerScale            `config.layerscale_value`
    """
    for module in backbone.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=backbone.config.initializer_range)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Conv2d | nn.LayerNorm):
            module.reset_parameters()
    for layer in backbone.encoder.layer:
        nn.init.constant_(layer.layer_scale1.lambda1, backbone.config.layerscale_value)
        nn.init.constant_(layer.layer_scale2.lambda1, backbone.config.layerscale_value)
    embeddings = backbone.embeddings
    nn.init.normal_(embeddings.cls_token, std=1e-6)
    nn.init.trunc_normal_(embeddings.position_embeddings, std=0.02)
    nn.init.zeros_(embeddings.mask_token)
    if num_register_tokens(backbone):
        nn.init.normal_(embeddings.register_tokens, std=register_init_std)


def num_register_tokens(backbone: Backbone) -> int:
    """How many register tokens there are between CLS and the patches."""
    return backbone.config.num_register_tokens if isinstance(backbone, Dinov2WithRegistersModel) else 0


def position_grid_size(height: int, width: int, patch_size: int) -> int:
    """Pixels of a side of the stored position grid for crops of `height x width`: the grid is a
    square of about the same area."""
    return round(math.sqrt(height * width) / patch_size) * patch_size
