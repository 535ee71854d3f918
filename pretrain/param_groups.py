"""Sets learning rate, weight decay and clipping by the role of each module (DINOv2
`utils/param_groups.py`)."""

import torch
from torch import Tensor, nn

from pretrain.backbone import Backbone, num_register_tokens


def parameter_groups(
    backbone: Backbone, heads: list[nn.Module], layerwise_decay: float = 1.0, patch_embed_lr_mult: float = 0.2
) -> list[dict]:
    """Groups for AdamW with `params`, `lr_multiplier`, `wd_multiplier`, `is_last_layer`. Equal ones
    are fused, in a fixed order.

    These are the published rules. Tokens and patches of the embedding have layer id 0, block i has
    i + 1, the final norm and the heads are at the top. The learning rate is multiplied by
    decay^(top - id), that of the patch embedding by `patch_embed_lr_mult` as well. Biases, norms
    and LayerScale are not decayed; CLS, position, mask and register tokens and the heads'
    weight-norm g and v are.
    """
    groups = ParameterGroups()
    layers = backbone.encoder.layer
    lowest = layerwise_decay ** (len(layers) + 1)
    for token in _tokens_of(backbone):
        groups.add(token, lowest, decayed=True)
    groups.add_module(backbone.embeddings.patch_embeddings, lowest * patch_embed_lr_mult)
    for index, layer in enumerate(layers):
        groups.add_module(layer, layerwise_decay ** (len(layers) - index))
    groups.add_module(backbone.layernorm, 1.0)
    for head in heads:
        groups.add_module(head.mlp, 1.0)
        groups.add_module(head.last_layer, 1.0, last_layer=True)
    return groups.as_list()


def _tokens_of(backbone: Backbone) -> list[nn.Parameter]:
    """The tokens of the embedding, and its positions."""
    embeddings = backbone.embeddings
    tokens = [embeddings.cls_token, embeddings.mask_token, embeddings.position_embeddings]
    if num_register_tokens(backbone):
        tokens.append(embeddings.register_tokens)
    return tokens


class ParameterGroups:
    """Parameters by learning-rate factor, by whether they are decayed, and by whether they are a
    head's last layer."""

    def __init__(self) -> None:
        self._groups: dict[tuple[float, float, bool], list[nn.Parameter]] = {}

    def add(self, parameter: nn.Parameter, lr: float, decayed: bool, last_layer: bool = False) -> None:
        """Add a parameter, unless it is frozen."""
        if parameter.requires_grad:
            self._groups.setdefault((lr, float(decayed), last_layer), []).append(parameter)

    def add_module(self, module: nn.Module, lr: float, last_layer: bool = False) -> None:
        """Add all parameters of a module; biases, norms and LayerScale are not decayed."""
        for part in module.modules():
            for name, parameter in part.named_parameters(recurse=False):
                is_scale = isinstance(part, nn.LayerNorm) or name == "lambda1"
                self.add(parameter, lr, decayed=not is_scale and name != "bias", last_layer=last_layer)

    def as_list(self) -> list[dict]:
        """The groups for an optimizer, in the order in which they began."""
        return [
            {"params": parameters, "lr_multiplier": lr, "wd_multiplier": decay, "is_last_layer": last}
            for (lr, decay, last), parameters in self._groups.items()
        ]


def apply_schedules(
    optimizer: torch.optim.Optimizer, lr: float, last_layer_lr: float, weight_decay: float
) -> None:
    """Set this step's learning rate and weight decay of every group."""
    for group in optimizer.param_groups:
        rate = last_layer_lr if group["is_last_layer"] else lr
        group["lr"] = rate * group["lr_multiplier"]
        group["weight_decay"] = weight_decay * group["wd_multiplier"]


def clip_per_module(modules: dict[str, nn.Module], max_norm: float) -> dict[str, Tensor]:
    """Clip each module's gradients by its own norm; a `max_norm` of 0 clips nothing. Returns the
    norms before clipping."""
    limit = max_norm or float("inf")
    return {name: nn.utils.clip_grad_norm_(module.parameters(), limit) for name, module in modules.items()}
