"""The backbone: transformers' own Dinov2 / Dinov2WithRegisters, initialised as the published DINOv2 is."""

import math
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import nn
from transformers import Dinov2Config, Dinov2Model, Dinov2WithRegistersConfig, Dinov2WithRegistersModel

from vision_core.errors import UserError
from vision_core.folder_kinds import refuse_folder
from vision_core.hub import hub_or_cache

Backbone = Dinov2Model | Dinov2WithRegistersModel

# hidden size, layers, heads: S, B, L and g as published (head size 64); the smaller ones are for small machines.
BACKBONE_SIZES = {
    "nano": (128, 4, 2),
    "micro": (192, 6, 3),
    "tiny": (192, 12, 3),
    "small": (384, 12, 6),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
    "giant": (1536, 40, 24),
}


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
) -> Backbone:
    """A freshly initialised backbone (random draws from torch's global generator).

    Without registers it is a `Dinov2Model`, with them a `Dinov2WithRegistersModel`; the two interpolate their position
    embeddings differently (the second with antialias), as the two families of released weights do. Its own drop path is 0:
    `crop_groups.forward_crop_groups` does stochastic depth, so one config describes student and teacher.

    Args:
        image_size: pixels of a side of the stored, square position grid; a multiple of `patch_size`.
        initializer_range: std of the linear layers; the published 0.02 suits widths of 384 and more.
        use_swiglu_ffn: SwiGLU of hidden size ((int(4D * 2/3) + 7) // 8) * 8 in place of the GELU MLP.
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
    initialise_backbone(backbone, register_init_std)
    return backbone


@torch.no_grad()
def initialise_backbone(backbone: Backbone, register_init_std: float) -> None:
    """Published initialisation (DINOv2 `vision_transformer.py`), which is not the one of transformers.

    Linear layers: truncated normal of std `config.initializer_range` (published 0.02), bias 0. Patch convolution: PyTorch's default. CLS
    token: normal of std 1e-6. Registers: normal of `register_init_std`; the published 1e-6 leaves them equal for thousands of steps, DINOv3
    has 0.02. Position embeddings: truncated normal of std 0.02. Mask token: 0. LayerScale: `config.layerscale_value`.
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
    """How many register tokens stand between CLS and the patches."""
    return backbone.config.num_register_tokens if isinstance(backbone, Dinov2WithRegistersModel) else 0


def position_grid_size(height: int, width: int, patch_size: int) -> int:
    """Pixels of a side of the stored square position grid for crops of `height x width`: the square of about the same area."""
    return round(math.sqrt(height * width) / patch_size) * patch_size


@torch.no_grad()
def load_backbone_weights(backbone: Backbone, source: str) -> list[str]:
    """Copy the weights of the checkpoint `source` (a folder or a hub name) into `backbone`; returns lines that say what was done.

    The position grid is resized (bicubic) where the two differ; any other difference of names or shapes raises `UserError`.
    """
    if Path(source).is_dir():
        refuse_folder(source, "an encoder", ("encoder", "saved_encoder", "timm", "weights", "model", "unknown"))
    with nullcontext() if Path(source).exists() else hub_or_cache(f"init_from={source}"):
        loaded = _load(type(backbone), source)
    if loaded.config.model_type != backbone.config.model_type:
        raise UserError(
            f"init_from={source}: it is a {loaded.config.model_type}, the run builds a {backbone.config.model_type}; "
            "set num_register_tokens as the checkpoint has it"
        )
    state, report = loaded.state_dict(), []
    key = "embeddings.position_embeddings"
    if state[key].shape[1] != backbone.embeddings.position_embeddings.shape[1]:
        old, new = (math.isqrt(table.shape[1] - 1) for table in (state[key], backbone.embeddings.position_embeddings))
        state[key] = resize_position_embeddings(state[key], new)
        report.append(f"position embeddings resized from {old} x {old} to {new} x {new}")
    wrong = [name for name, value in backbone.state_dict().items() if name not in state or state[name].shape != value.shape]
    if wrong or len(state) != len(backbone.state_dict()):
        raise UserError(
            f"init_from={source}: {len(wrong)} tensors do not fit, first {wrong[:3]}; give the run the checkpoint's hidden_size, "
            "num_hidden_layers, patch_size, num_channels and use_swiglu_ffn"
        )
    backbone.load_state_dict(state)
    return [f"{len(state)} backbone tensors loaded from {source}", *report]


def _load(model_class: type[Backbone], source: str) -> Backbone:
    try:
        return model_class.from_pretrained(source, attn_implementation="sdpa")
    except Exception as error:  # a broken checkpoint raises whatever its reader does
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(f"init_from={source} cannot be loaded ({reason}); give a folder or hub name with config and safetensors") from None


def resize_position_embeddings(table: torch.Tensor, side: int) -> torch.Tensor:
    """Resize a `[1, 1 + M*M, D]` table (CLS first) to `[1, 1 + side*side, D]`: bicubic, in float32, CLS untouched."""
    cls, grid = table[:, :1], table[:, 1:]
    old = math.isqrt(grid.shape[1])
    grid = grid.float().reshape(1, old, old, -1).permute(0, 3, 1, 2)
    grid = nn.functional.interpolate(grid, size=(side, side), mode="bicubic", antialias=side < old)
    return torch.cat([cls, grid.permute(0, 2, 3, 1).reshape(1, side * side, -1).to(cls.dtype)], dim=1)
