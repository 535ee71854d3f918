"""A resampler: learned queries attend to all tokens of all encoders, and give the same number of
tokens for an image of any size."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fusion.connectors.base import Connector, mlp
from fusion.connectors.geometry import ImageLayout
from vision_core.errors import UserError


class Resampler(Connector):
    """`num_queries` learned queries attend globally, `depth` times, like the Perceiver resampler of
    Flamingo and the Q-Former of BLIP-2.

    Each encoder's tokens get a Linear to `width`, a norm, and a learned vector that says which
    encoder they come from. Padding is masked.
    """

    def __init__(
        self,
        encoder_widths: Sequence[int],
        encoder_grids: Sequence[int],
        hidden_size: int,
        grid: int,
        *,
        newline: bool = True,
        num_queries: int = 64,
        width: int = 1024,
        num_heads: int = 16,
        depth: int = 3,
    ) -> None:
        if width % num_heads:
            raise UserError(
                f"the resampler's width of {width} is not a multiple of its {num_heads} heads; change one of them"
            )
        self.fixed_tokens = num_queries
        super().__init__(encoder_widths, encoder_grids, hidden_size, grid, newline=newline)
        self.projections = nn.ModuleList(
            nn.Sequential(nn.Linear(each, width), nn.LayerNorm(width)) for each in encoder_widths
        )
        self.encoder_embeddings = nn.Parameter(torch.randn(len(encoder_widths), width) * 0.02)
        self.vision_query = nn.Parameter(torch.randn(num_queries, width) / width**0.5)
        self.layers = nn.ModuleList(ResamplerLayer(width, num_heads) for _ in range(depth))
        self.mm_projector = nn.Sequential(nn.LayerNorm(width), mlp(width, hidden_size, hidden_size))

    def aggregate(self, maps: Sequence[Tensor], layout: ImageLayout) -> tuple[Tensor, None]:
        of_encoders = zip(maps, self.projections, self.encoder_embeddings, strict=True)
        tokens = []
        padding = []
        for patch_map, projection, embedding in of_encoders:
            tokens.append(projection(patch_map.flatten(2).transpose(1, 2)) + embedding)
            padding.append(~layout.mask(patch_map.shape[-1], patch_map.device).flatten(1))
        all_tokens = torch.cat(tokens, dim=1)  # [B, sum of N, D]
        all_padding = torch.cat(padding, dim=1)  # [B, sum of N]
        queries = self.vision_query.expand(len(maps[0]), -1, -1)
        for layer in self.layers:
            queries = layer(queries, all_tokens, all_padding)
        return self.mm_projector(queries).flatten(0, 1), None


class ResamplerLayer(nn.Module):
    """One layer: queries attend to the tokens and to each other, then go through an MLP. Each of
    the two has a norm before it and is added to the queries."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.query_norm = nn.LayerNorm(width)
        self.mlp_norm = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, num_heads, batch_first=True)
        self.mlp = mlp(width, 4 * width, width)

    def forward(self, queries: Tensor, tokens: Tensor, padding: Tensor) -> Tensor:
        """Update queries `[B, n, D]` from tokens `[B, m, D]`; padding: `[B, m]` bool, True for
        tokens that are left out."""
        normed = self.query_norm(queries)
        keys = torch.cat([tokens, normed], dim=1)
        masked = torch.cat([padding, padding.new_zeros(normed.shape[:2])], dim=1)
        attended, _ = self.attention(normed, keys, keys, key_padding_mask=masked, need_weights=False)
        queries = queries + attended
        return queries + self.mlp(self.mlp_norm(queries))
