"""The values from which a stage of training is built.

A script makes them from its options; below it nobody sees the options themselves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Stage:
    """A stage of training, as its folder and its card describe it.

    Attributes:
        name: "align" or "sft"; also the name of the default output folder.
        program: the script, `recipes/sva_sft.py`, which alone resumes its runs.
        config_yaml: the text of the run's config.yaml.
        card_settings: the options that its card shows, by name.
    """

    name: str
    program: str
    config_yaml: str
    card_settings: Mapping[str, Any]


@dataclass(frozen=True)
class DataOptions:
    """Which conversations are trained on, and how they become batches.

    Attributes:
        conversations: the source texts of the training data.
        held_out: the source texts of conversations on which the loss is measured in between.
        max_length: the most tokens of a conversation, image tokens counted.
        packing: whether several short conversations share a row of a batch.
        group_by_length: whether a step takes conversations of similar length.
        feature_cache: the folder that keeps the frozen encoders' features, or None.
        feature_cache_dtype: the precision of these features.
    """

    conversations: Sequence[str]
    held_out: Sequence[str]
    max_length: int
    packing: bool = False
    group_by_length: bool = False
    feature_cache: str | None = None
    feature_cache_dtype: Literal["fp32", "bf16"] = "bf16"


@dataclass(frozen=True)
class MemoryOptions:
    """How a stage saves memory.

    Attributes:
        activation_checkpointing: whether the backward pass computes activations again.
        zero_config: the config for DeepSpeed, complete, or None for a run without it.
    """

    activation_checkpointing: bool = False
    zero_config: dict[str, Any] | None = None
