"""What trains in a fused vision-language model when its language model is frozen but for LoRA."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from torch import nn

from fusion.modeling_fusion_vlm import FusionVlmForConditionalGeneration
from vision_core.errors import UserError

if TYPE_CHECKING:
    from peft import LoraConfig


def trained_modules(model: FusionVlmForConditionalGeneration) -> list[str]:
    """Names of what is new in a fused model and trains whole: the connector, and the layers that
    look into the encoders again."""
    return [
        "vision_model.connector",
        *(f"vision_sampler_layers.{index}" for index in range(len(model.vision_sampler_layers))),
    ]


def lora_config(
    model: FusionVlmForConditionalGeneration,
    rank: int = 16,
    alpha: int = 32,
    dropout: float = 0.0,
    **options: Any,
) -> LoraConfig:
    """For `peft.get_peft_model`: LoRA in all linear layers of the language model but its head, and
    `trained_modules` trained whole and saved.

    The pattern starts at the language model: names such as `q_proj` are those of encoders too.
    options: for `peft.LoraConfig`. Raises UserError where peft is missing.
    """
    try:
        from peft import LoraConfig
    except ImportError:
        raise UserError("LoRA needs the package peft; pip install 'vision-encoder-fusion[recipes]'") from None
    head = model.get_output_embeddings()
    names = {
        name.rpartition(".")[2]
        for name, module in model.language_model.named_modules()
        if isinstance(module, nn.Linear) and module is not head
    }
    return LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=rf"language_model\..*\.({'|'.join(sorted(map(re.escape, names)))})",
        modules_to_save=trained_modules(model),
        **options,
    )
