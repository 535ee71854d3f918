"""The projection head that turns tokens into prototype logits."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ProjectionHead(nn.Module):
    """Turns tokens into K prototype logits: Linear-GELU layers to a bottleneck, L2 normalisation,
    then a weight-normalised linear layer.

    It is initialised as DINOv2 `layers/dino_head.py`: linear layers are truncated normal of std 0.02
    with bias 0. The last layer has no bias; its direction v keeps PyTorch's default initialisation,
    and its norm g starts at 1.

    Args:
        in_dim: width D of the tokens.
        num_prototypes: K.
        train_weight_g: the published code trains g; DINO's paper keeps it at 1.
    """

    def __init__(
        self,
        in_dim: int,
        num_prototypes: int,
        hidden_dim: int = 2048,
        bottleneck_dim: int = 256,
        num_layers: int = 3,
        train_weight_g: bool = True,
    ) -> None:
        super().__init__()
        self.num_prototypes = num_prototypes
        widths = [in_dim, *[hidden_dim] * (num_layers - 1), bottleneck_dim]
        layers: list[nn.Module] = []
        for left, right in zip(widths, widths[1:], strict=False):
            layers += [nn.Linear(left, right), nn.GELU()]
        self.mlp = nn.Sequential(*layers[:-1])
        for module in self.mlp:
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        self.last_layer = nn.utils.parametrizations.weight_norm(
            nn.Linear(bottleneck_dim, num_prototypes, bias=False)
        )
        norm = self.last_layer.parametrizations.weight.original0
        nn.init.ones_(norm)
        norm.requires_grad_(train_weight_g)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits `[n, K]` of tokens `[n, D]`; n may be 0."""
        bottleneck = self.mlp(tokens)  # [n, bottleneck_dim]
        with torch.autocast(bottleneck.device.type, enabled=False):
            bottleneck = F.normalize(bottleneck.float(), dim=-1, eps=1e-12)
        return self.last_layer(bottleneck)  # [n, K]
