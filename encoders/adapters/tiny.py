"""A tiny random encoder of every family, made by the real libraries, for tests and first runs that
have no checkpoint."""

from typing import Any

import torch

from encoders.adapters.open_clip_encoder import build_open_clip
from encoders.adapters.timm_encoder import load_timm
from encoders.adapters.transformers_encoder import build_transformers
from encoders.base import Encoder
from encoders.preprocess import ImageTransform
from vision_core.errors import UserError

SIDE = 64
VIT = {
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "image_size": SIDE,
    "patch_size": 8,
}
VIT_OF_ANY_SIZE = {name: value for name, value in VIT.items() if name != "image_size"}
VIT_OF_A_RATIO = {name: value for name, value in VIT.items() if name != "intermediate_size"}
STAGES = {"hidden_sizes": [16, 24, 32, 48], "depths": [1, 1, 2, 1]}

TRANSFORMERS: dict[str, dict[str, Any]] = {
    "dinov2": {**VIT, "model_type": "dinov2", "mlp_ratio": 2},
    "dinov2_with_registers": {**VIT, "model_type": "dinov2_with_registers", "mlp_ratio": 2},
    "dinov3_vit": {**VIT, "model_type": "dinov3_vit", "num_register_tokens": 4},
    "dinov3_convnext": {**STAGES, "model_type": "dinov3_convnext"},
    "convnext": {**STAGES, "model_type": "convnext"},
    "convnextv2": {**STAGES, "model_type": "convnextv2"},
    "siglip": {**VIT, "model_type": "siglip_vision_model"},
    "siglip2": {**VIT_OF_ANY_SIZE, "model_type": "siglip2_vision_model", "num_patches": 64},
    "clip": {**VIT, "model_type": "clip_vision_model"},
    "metaclip_2": {**VIT, "model_type": "metaclip_2_vision_model"},
    "vit": {**VIT, "model_type": "vit"},
    "vit_mae": {**VIT, "model_type": "vit_mae"},
    "ijepa": {**VIT, "model_type": "ijepa"},
    "aimv2": {**VIT, "model_type": "aimv2_vision_model"},
    "aimv2_native": {**VIT, "model_type": "aimv2_vision_model", "is_native": True},
    "internvl": {**VIT, "model_type": "internvl_vision", "image_size": [SIDE, SIDE], "patch_size": [8, 8]},
    "radio": {**VIT_OF_A_RATIO, "model_type": "radio", "mlp_ratio": 2.0, "max_img_size": 128},
    "tipsv2": {**VIT_OF_A_RATIO, "model_type": "tipsv2_vision_model", "mlp_ratio": 2},
}
TIMM: dict[str, tuple[str, dict[str, Any]]] = {
    "timm_vit": (
        "vit_tiny_patch16_224",
        {"img_size": SIDE, "patch_size": 8, "embed_dim": 64, "depth": 4, "num_heads": 4},
    ),
    "timm_dinov2": (
        "vit_small_patch14_reg4_dinov2",
        {"img_size": 56, "embed_dim": 64, "depth": 4, "num_heads": 4},
    ),
    "timm_siglip": (
        "vit_base_patch16_siglip_224",
        {"img_size": SIDE, "patch_size": 8, "embed_dim": 64, "depth": 4, "num_heads": 4},
    ),
    "timm_convnext": ("convnext_atto", {"depths": (1, 1, 2, 1), "dims": (16, 24, 32, 48)}),
    "timm_resnet": ("resnet10t", {}),
}
TEXT = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
OPEN_CLIP: dict[str, dict[str, Any]] = {
    "open_clip_vit": {
        "embed_dim": 32,
        "vision_cfg": {"image_size": SIDE, "layers": 4, "width": 64, "head_width": 16, "patch_size": 8},
        "text_cfg": TEXT,
    },
    "open_clip_convnext": {
        "embed_dim": 32,
        "vision_cfg": {
            "timm_model_name": "convnext_atto",
            "timm_model_pretrained": False,
            "timm_pool": "",
            "timm_proj": "linear",
            "image_size": SIDE,
        },
        "text_cfg": TEXT,
    },
}
FAMILY_NAMES = (*TRANSFORMERS, *TIMM, *OPEN_CLIP)


def tiny_encoder(family: str, *, dtype: torch.dtype = torch.float32, **options: Any) -> Encoder:
    """An untrained encoder of `family`, one of `FAMILY_NAMES`. `options` are those of `Encoder`.
    Raises UserError for another name."""
    _check_family(family)
    options["untrained"] = True
    if family in TRANSFORMERS:
        return build_transformers(TRANSFORMERS[family], ImageTransform((SIDE, SIDE)), dtype=dtype, **options)
    if family in TIMM:
        name, args = TIMM[family]
        return load_timm(name, pretrained=False, model_args=args, dtype=dtype, **options)
    return build_open_clip(OPEN_CLIP[family], dtype=dtype, **options)


def load(
    name: str, *, source: str, image_size: tuple[int, int] | None, dtype: torch.dtype, **options: Any
) -> Encoder:
    """The tiny encoder of the family `name` (see encoders/adapters/__init__.py)."""
    return tiny_encoder(name, dtype=dtype, source=source, **options)


def check(name: str, *, source: str, has_weights: bool) -> None:
    """Raise UserError for a family that does not exist."""
    _check_family(name)


def _check_family(family: str) -> None:
    if family not in FAMILY_NAMES:
        raise UserError(f"tiny:{family} does not exist; the families are {', '.join(FAMILY_NAMES)}")
