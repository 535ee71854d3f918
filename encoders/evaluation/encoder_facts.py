"""What a table says of an encoder: how its family is trained, and how it looks at images."""

from __future__ import annotations

from encoders.base import Encoder

SELF_DISTILLATION = "self-distillation"
IMAGE_TEXT = "image-text"
RECONSTRUCTION = "reconstruction"
PARADIGM_OF_MODEL_TYPE = {
    "dinov2": SELF_DISTILLATION,
    "dinov2_with_registers": SELF_DISTILLATION,
    "dinov3_vit": SELF_DISTILLATION,
    "dinov3_convnext": SELF_DISTILLATION,
    "siglip_vision_model": IMAGE_TEXT,
    "siglip2_vision_model": IMAGE_TEXT,
    "clip_vision_model": IMAGE_TEXT,
    "metaclip_2_vision_model": IMAGE_TEXT,
    "internvl_vision": IMAGE_TEXT,
    "tipsv2_vision_model": IMAGE_TEXT,
    "vit_mae": RECONSTRUCTION,
    "ijepa": RECONSTRUCTION,
    "aimv2_vision_model": RECONSTRUCTION,
    "radio": "distillation",
}


def training_paradigm(encoder: Encoder) -> str:
    """How the family of an encoder is trained, as far as its type tells."""
    if encoder.library == "open_clip":
        return IMAGE_TEXT
    if encoder.library == "transformers":
        return PARADIGM_OF_MODEL_TYPE.get(encoder.model.config.model_type, "other")
    return "none" if encoder.library == "raw_pixels" else "see its model card"


def viewing_protocol(encoder: Encoder) -> str:
    """How an encoder looks at images, in words: the size, the cropping, the vector, the layers."""
    transform = encoder.transform
    height, width = transform.size
    if encoder.pooled_width is None:
        vector = "mean of the patches"
    else:
        vector = f"published image vector of {encoder.pooled_width}"
    layers = "1 layer" if encoder.num_layers == 1 else f"{encoder.num_layers} layers"
    return (
        f"{height} x {width} pixels, {_cropping(encoder)}, {transform.interpolation} interpolation; {vector}; "
        f"{layers} of {encoder.width} of stride {encoder.stride}"
    )


def _cropping(encoder: Encoder) -> str:
    transform = encoder.transform
    if transform.fit == "squash":
        return "whole image squashed"
    if transform.margin > 1:
        return f"centre crop of {1 / transform.margin:.0%}"
    return "centre crop"
