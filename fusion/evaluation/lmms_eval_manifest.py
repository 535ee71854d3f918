"""What lmms-eval reads at its entry point `lmms_eval.models` (pyproject.toml): the name of fused
models there, and where their class is."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lmms_eval.models.registry_v2 import ModelManifest


def manifest() -> ModelManifest:
    """`--model fusion_vlm`, which is asked by chat messages."""
    from lmms_eval.models.registry_v2 import (
        ModelManifest,  # lmms-eval is half imported when it comes here
    )

    return ModelManifest("fusion_vlm", chat_class_path="fusion.evaluation.lmms_eval_adapter.FusionVlm")
