"""A resampler: learned queries that attend to all tokens of all encoders, for a number of tokens
that no image's size changes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fusion.connectors.base import Connector, mlp
from fusion.connectors.geometry import ImageLayout
from vision_core.errors import UserError


class Resampler(Connector):
    """`num_queries` learned queries attend globally, `depth` times (Flamingo's Perceiver resampler,
    BLIP-2's Q-Former: global, not spatial).

    Every encoder's tokens get a Linear to `width`, a norm, and a learned vector that says which
    encoder they are of. A layer is attention of the queries to tokens and queries, and an MLP, each
    behind a norm and added to the queries. Padding is masked.
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
                f"the resampler's width of {width} is no multiple of its {num_heads} heads; change one of them"
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
        tokens, padding = [], []
        for patch_map, projection, embedding in zip(
            maps, self.projections, self.encoder_embeddings, strict=True
        ):
            tokens.append(projection(patch_map.flatten(2).transpose(1, 2)) + embedding)
            padding.append(~layout.mask(patch_map.shape[-1], patch_map.device).flatten(1))
        queries = self.vision_query.expand(len(maps[0]), -1, -1)
        for layer in self.layers:
            queries = layer(queries, torch.cat(tokens, dim=1), torch.cat(padding, dim=1))
        return self.mm_projector(queries).flatten(0, 1), None


class ResamplerLayer(nn.Module):
    """Queries `[B, n, width]` attend to tokens `[B, m, width]`, of which `padding` `[B, m]` are
    none, and to each other."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.query_norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, num_heads, batch_first=True)
        self.mlp = mlp(width, 4 * width, width)

    def forward(self, queries: Tensor, tokens: Tensor, padding: Tensor) -> Tensor:
        normed = self.query_norm(queries)
        keys = torch.cat([tokens, normed], dim=1)
        masked = torch.cat([padding, padding.new_zeros(normed.shape[:2])], dim=1)
        queries = queries + self.attention(normed, keys, keys, key_padding_mask=masked, need_weights=False)[0]
        return queries + self.mlp(self.mlp_norm(queries))
