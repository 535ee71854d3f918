"""Offloading, accelerate's `device_map`: weights lie on the CPU or on disk and are brought when they
are needed."""

from __future__ import annotations

from typing import Any

from torch import nn

from encoders.adapters.open_clip_encoder import OpenClipEncoder
from encoders.adapters.timm_encoder import TimmEncoder
from fusion.connectors.cross_attention import VisionCrossAttentionLayer

# These classes compute with the weights of inner modules without calling them. TransformersEncoder
# is not among them: the models of transformers call their modules.
COMPUTING_WITH_INNER_WEIGHTS = (
    VisionCrossAttentionLayer,
    nn.MultiheadAttention,
    TimmEncoder,
    OpenClipEncoder,
)


def bring_whole_layers(model: nn.Module) -> None:
    """Make accelerate bring all weights of a layer of `COMPUTING_WITH_INNER_WEIGHTS` when the layer
    is called.

    By itself accelerate brings a module's weights when that module is called. It can be told of
    layers that need more (`preload_module_classes`), but `from_pretrained` does not pass that on.
    """
    for name, module in model.named_modules():
        if isinstance(module, COMPUTING_WITH_INNER_WEIGHTS):
            hook = _offloading_hook(module)
            if hook is not None:
                _bring_all_weights(name, module, hook)


def _offloading_hook(module: nn.Module) -> Any:
    """The hook that brings the weights within `module`, or None where they are not offloaded."""
    for inner in module.modules():
        hook = getattr(inner, "_hf_hook", None)
        for single in getattr(hook, "hooks", [hook]):  # a module with several hooks has one SequentialHook
            if getattr(single, "offload", False):
                return single
    return None


def _bring_all_weights(name: str, module: nn.Module, hook: Any) -> None:
    from accelerate.hooks import attach_align_device_hook, remove_hook_from_module

    remove_hook_from_module(module, recurse=True)
    attach_align_device_hook(
        module,
        execution_device=hook.execution_device,
        offload=True,
        weights_map=hook.weights_map.dataset,
        offload_buffers=hook.offload_buffers,
        module_name=name,
        skip_keys=hook.skip_keys,
        preload_module_classes=[type(module).__name__],
        tied_params_map=hook.tied_params_map,
    )
