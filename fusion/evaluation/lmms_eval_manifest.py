"""Tells lmms-eval the name of fused models and where their class is.

lmms-eval reads it at its entry point `lmms_eval.models` (pyproject.toml).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lmms_eval.models.registry_v2 import ModelManifest


def manifest() -> ModelManifest:
    """Registers `--model fusion_vlm`, a model that is asked by chat messages."""
    # imported here, because lmms-eval is half imported when it imports this module
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest("fusion_vlm", chat_class_path="fusion.evaluation.lmms_eval_adapter.FusionVlm")
