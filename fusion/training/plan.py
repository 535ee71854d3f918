"""What of a fused model trains in a stage, and at which learning rates."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from fusion import FusionVlmForConditionalGeneration
from fusion.lora import lora_config, trained_modules
from vision_core.randomness import seed_of

# (pattern, rate): the rate of all parameters in whose names the pattern is found
Rates = Sequence[tuple[re.Pattern[str], float]]
ENCODER_NAMES = re.compile(r"vision_model\.encoders\.")
# the aggregator's queries and cross-attention layers, in the connector and in the language model
SAMPLER_NAMES = re.compile(r"vision_query|vision_sampler")


@dataclass(frozen=True)
class StagePlan:
    """What trains in a stage. The connector and the cross-attention layers in the language model
    always do.

    Attributes:
        learning_rate: of all that has no rate of its own.
        language_model: "frozen", "trained" with all its weights, or trained by "lora".
        lora_rank: the rank of LoRA's matrices.
        sampler_learning_rate: of the aggregator's queries and of all cross-attention layers.
        encoder_learning_rate: of the encoders; without one they are frozen.
    """

    learning_rate: float
    language_model: Literal["frozen", "trained", "lora"]
    lora_rank: int = 0
    sampler_learning_rate: float | None = None
    encoder_learning_rate: float | None = None

    def own_rates(self) -> Rates:
        """The rates besides `learning_rate`; the first pattern found in a name decides."""
        rates = ((ENCODER_NAMES, self.encoder_learning_rate), (SAMPLER_NAMES, self.sampler_learning_rate))
        return [(pattern, rate) for pattern, rate in rates if rate is not None]


def apply_plan(model: FusionVlmForConditionalGeneration, plan: StagePlan, seed: int) -> nn.Module:
    """The model, in which what `plan` says requires gradients; with LoRA, the model that peft wraps
    around it."""
    if plan.language_model == "frozen":
        train_connector_alone(model)
        return model
    model.requires_grad_(True)
    for encoder in model.vision_model.encoders:
        encoder.freeze(plan.encoder_learning_rate is None)
    if plan.language_model == "lora":
        return with_lora(model, plan.lora_rank, seed)
    return model


def train_connector_alone(model: FusionVlmForConditionalGeneration) -> None:
    """Freeze all but the connector and the cross-attention layers in the language model."""
    model.requires_grad_(False)
    for name in trained_modules(model):
        model.get_submodule(name).requires_grad_(True)


def with_lora(model: FusionVlmForConditionalGeneration, rank: int, seed: int) -> nn.Module:
    """LoRA in the language model; the connector and the cross-attention layers train with all their
    weights."""
    from peft import get_peft_model

    torch.manual_seed(seed_of(seed, "lora"))  # peft draws its matrices from torch's generator
    config = lora_config(model, rank=rank, alpha=2 * rank)
    # LoRA's matrices keep the model's dtype: ZeRO-3 has it in bf16 already, and takes no second one
    return get_peft_model(model, config, autocast_adapter_dtype=False)
