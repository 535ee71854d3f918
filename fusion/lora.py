"""LoRA for the language model of a fused vision-language model, whose new parts train in full."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from torch import nn

from fusion.modeling_fusion_vlm import FusionVlmForConditionalGeneration
from vision_core.errors import UserError

if TYPE_CHECKING:
    from peft import LoraConfig


def trained_modules(model: FusionVlmForConditionalGeneration) -> list[str]:
    """The names of the parts that are new in a fused model and train in full: the connector, and the
    layers that look into the encoders again."""
    layers = [f"vision_sampler_layers.{index}" for index in range(len(model.vision_sampler_layers))]
    return ["vision_model.connector", *layers]


def lora_config(
    model: FusionVlmForConditionalGeneration,
    rank: int = 16,
    alpha: int = 32,
    dropout: float = 0.0,
    **options: Any,
) -> LoraConfig:
    """Make the config for `peft.get_peft_model`: LoRA in all linear layers of the language model
    but its head; `trained_modules` are trained in full and saved.

    The pattern starts at the language model, because encoders have names such as `q_proj` too.
    options: more options of `peft.LoraConfig`. Raises UserError where peft is missing.
    """
    try:
        from peft import LoraConfig
    except ImportError:
        raise UserError("LoRA needs the package peft; pip install 'vision-encoder-fusion[recipes]'") from None
    names = "|".join(map(re.escape, _linear_layer_names(model)))
    return LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=rf"language_model\..*\.({names})",
        modules_to_save=trained_modules(model),
        **options,
    )


def _linear_layer_names(model: FusionVlmForConditionalGeneration) -> list[str]:
    """The last parts of the names, such as `q_proj`, of the language model's linear layers."""
    head = model.get_output_embeddings()
    names = set()
    for name, module in model.language_model.named_modules():
        if isinstance(module, nn.Linear) and module is not head:
            names.add(name.rpartition(".")[2])
    return sorted(names)
