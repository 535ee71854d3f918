"""One layer of spatial cross-attention: a query looks into its windows in the grids of all
encoders, under one softmax.

Cambrian-1 (Tong et al. 2024), section 3.2, in the form of the released code: 16 heads, norms on
queries, keys and values, queries joined with an image's global context.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from fusion.connectors.windows import VisionWindows

Path = Literal["plain", "fast"]
Folding = tuple[Tensor, Tensor]


class MultiEncoderAttention(nn.Module):
    """Attention of N queries, each over its own few keys from several encoders, with projections of
    their own for each encoder.

    window_sizes: tokens of one window, for each encoder. shared_norms: one norm before keys and
    values of an encoder instead of two.

    With h heads of width d, for a query q `[width]` and the tokens x_ij of encoder i:

        k_ij, v_ij = W_k,i LN_k,i(x_ij), W_v,i LN_v,i(x_ij)
        a_ij = softmax over all i and j of (W_q LN_q(q)) . k_ij / sqrt(d)       per head
        result = W_o sum_ij a_ij v_ij
    """

    def __init__(
        self, width: int, num_heads: int, window_sizes: Sequence[int], shared_norms: bool = False
    ) -> None:
        super().__init__()
        self.num_heads, self.scale, self.shared_norms = (
            num_heads,
            (width // num_heads) ** -0.5,
            shared_norms,
        )
        self.window_sizes = tuple(window_sizes)
        encoders = range(len(window_sizes))
        self.q_norm, self.q_proj = nn.LayerNorm(width), nn.Linear(width, width, bias=False)
        self.k_norms = nn.ModuleList(nn.LayerNorm(width) for _ in encoders)
        self.k_projs = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in encoders)
        self.v_norms = None if shared_norms else nn.ModuleList(nn.LayerNorm(width) for _ in encoders)
        self.v_projs = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in encoders)
        self.o_proj = nn.Linear(width, width, bias=False)

    def forward(
        self, queries: Tensor, windows: VisionWindows, positions: Sequence[Tensor | None], path: Path
    ) -> Tensor:
        """`[N, width]` (or `[1, width]`, one for all) to `[N, width]`; positions: `[r * r, width]`
        for each encoder, or None."""
        heads = self.q_proj(self.q_norm(queries)).unflatten(-1, (self.num_heads, -1)) * self.scale
        heads = heads.expand(len(windows.image), -1, -1)
        look = self._plain if path == "plain" else self._fast
        return self.o_proj(look(heads, windows, positions).flatten(1))

    def _plain(self, heads: Tensor, windows: VisionWindows, positions: Sequence[Tensor | None]) -> Tensor:
        """The formula of the class."""
        keys, values = [], []
        for index, (tokens, position) in enumerate(zip(windows.tokens, positions, strict=True)):
            tokens = tokens if position is None else tokens + position
            keys.append(self.k_projs[index](self.k_norms[index](tokens)).unflatten(-1, (self.num_heads, -1)))
            values.append(
                self.v_projs[index](self._v_norm(index)(tokens)).unflatten(-1, (self.num_heads, -1))
            )
        scores = torch.einsum("nhd,nkhd->nhk", heads, torch.cat(keys, dim=1))
        return torch.einsum("nhk,nkhd->nhd", self._attend(scores, windows), torch.cat(values, dim=1))

    def _fast(self, heads: Tensor, windows: VisionWindows, positions: Sequence[Tensor | None]) -> Tensor:
        """The same, by `_OneToken` where a window is one token and by `_Absorbed` where it is
        several."""
        parts = []
        for index, (tokens, variance, position) in enumerate(
            zip(windows.tokens, windows.variances(), positions, strict=True)
        ):
            kind = _OneToken if self.window_sizes[index] == 1 else _Absorbed
            keys = folded(self.k_norms[index], self.k_projs[index])
            values = folded(self._v_norm(index), self.v_projs[index])
            parts.append(kind(heads, tokens, variance, position, keys, values, self.k_norms[index].eps))
        weights = self._attend(torch.cat([part.scores for part in parts], dim=-1), windows)
        each = weights.split(self.window_sizes, dim=-1)
        return sum(part.values(weight) for part, weight in zip(parts, each, strict=True))

    def _attend(self, scores: Tensor, windows: VisionWindows) -> Tensor:
        """The joint softmax of `[N, h, keys]` over all encoders' keys."""
        if any(mask is not None for mask in windows.masks):
            masks = [scores.new_ones(len(scores), size, dtype=torch.bool) if mask is None else mask
                     for mask, size in zip(windows.masks, self.window_sizes, strict=True)]  # fmt: skip
            scores = scores.masked_fill(~torch.cat(masks, dim=1)[:, None], float("-inf"))
        weights = scores.float().softmax(-1).to(scores.dtype)
        if windows.shares is not None:
            shares = [each.sum(-1) for each in weights.detach().float().split(self.window_sizes, dim=-1)]
            windows.shares.append(torch.stack(shares, dim=-1))
        return weights

    def _v_norm(self, index: int) -> nn.LayerNorm:
        return (self.k_norms if self.v_norms is None else self.v_norms)[index]


def folded(norm: nn.LayerNorm, projection: nn.Linear) -> tuple[Tensor, Tensor]:
    """W' and b with W LN(x) = W' x / sigma + b: the norm's scale, its taking off of the mean, and
    its shift inside the projection.

    Rows of W' sum to zero, so that W' x = W' (x - mean(x)).
    """
    scaled = projection.weight * norm.weight
    return scaled - scaled.mean(1, keepdim=True), projection.weight @ norm.bias


class _OneToken:
    """Scores and values of an encoder with one token per window: one product for keys and values,
    on tokens that no norm has touched.

    heads `[N, h, d]`, tokens `[N, 1, width]`, variance `[N, 1]` -> scores `[N, h, 1]`;
    values(weights `[N, h, 1]`) -> `[N, h, d]`.
    """

    def __init__(
        self,
        heads: Tensor,
        tokens: Tensor,
        variance: Tensor,
        position: None,
        keys: Folding,
        values: Folding,
        eps: float,
    ) -> None:
        both = F.linear(tokens[:, 0], torch.cat([keys[0], values[0]])) * (variance + eps).rsqrt().to(
            tokens.dtype
        )
        both = both + torch.cat([keys[1], values[1]])
        projected_keys, self.projected = both.unflatten(-1, (2, *heads.shape[1:])).unbind(1)
        self.scores = (heads * projected_keys).sum(-1, keepdim=True)

    def values(self, weights: Tensor) -> Tensor:
        return weights * self.projected


class _Absorbed:
    """Scores and values of an encoder with several tokens per window, none of which is projected or
    normalised. With W' and b from `folded`, tokens x_j and their places in the window p_j:

        sigma_j^2 = var(x_j) + var(p_j) + 2 cov(x_j, p_j) + eps
        score_j = q . k_j = ((W'_k^T q) . x_j + q . (W'_k p_j)) / sigma_j + q . b_k
        sum_j a_j v_j = W'_v sum_j (a_j / sigma_j) x_j + sum_j (a_j / sigma_j) W'_v p_j + (sum_j a_j) b_v

    heads `[N, h, d]`, tokens `[N, r * r, width]`, variance `[N, r * r]`, position `[r * r, width]`
    -> scores `[N, h, r * r]`; values(weights `[N, h, r * r]`) -> `[N, h, d]`.
    """

    def __init__(
        self,
        heads: Tensor,
        tokens: Tensor,
        variance: Tensor,
        position: Tensor,
        keys: Folding,
        values: Folding,
        eps: float,
    ) -> None:
        num_heads = heads.shape[1]
        self.tokens, self.v_weight = (tokens, values[0].unflatten(0, (num_heads, -1)))  # [h, d, width]
        self.v_bias, self.v_place = (
            values[1].unflatten(0, (num_heads, -1)),
            (position @ values[0].T).unflatten(-1, (num_heads, -1)),
        )
        place = position - position.mean(-1, keepdim=True)
        covariance = torch.einsum("njc,jc->nj", tokens, place).float() / tokens.shape[-1]
        square = variance + place.float().square().mean(-1) + 2 * covariance + eps
        self.inverse_sigma = square.rsqrt().to(tokens.dtype)[:, None]
        absorbed = torch.bmm(heads.transpose(0, 1), keys[0].unflatten(0, (num_heads, -1))).transpose(
            0, 1
        )  # [N, h, width]
        of_places = torch.einsum("nhd,jhd->nhj", heads, (position @ keys[0].T).unflatten(-1, (num_heads, -1)))
        bias = (heads * keys[1].unflatten(0, (num_heads, -1))).sum(-1, keepdim=True)
        self.scores = (torch.bmm(absorbed, tokens.transpose(1, 2)) + of_places) * self.inverse_sigma + bias

    def values(self, weights: Tensor) -> Tensor:
        scaled = weights * self.inverse_sigma
        gathered = torch.bmm(scaled, self.tokens)  # [N, h, width]
        projected = torch.bmm(gathered.transpose(0, 1), self.v_weight.transpose(1, 2)).transpose(0, 1)
        return (
            projected
            + torch.einsum("nhj,jhd->nhd", scaled, self.v_place)
            + weights.sum(-1, keepdim=True) * self.v_bias
        )


class VisionCrossAttentionLayer(nn.Module):
    """A query q of `query_width` channels, updated from its windows:

        h = W_in [q; W_c context]
        h = LN(h + attention(h))
        q + W_2 GELU(W_1 h)

    Args:
        query_width: of the queries: the aggregator's width in a connector, the hidden size inside a
            language model.
        width: of tokens, context and everything inside. num_heads: of the attention; width is a
            multiple of it.
        window_sizes: tokens in a window, r * r for each encoder. Windows of several tokens have
            learned places, `[r * r, width]`, drawn from N(0, 1).
        zero_init_output: W_2 starts at zero, so that the layer starts as the identity; the released
            one does not.
        shared_norms: see `MultiEncoderAttention`.

    Attributes:
        gradient_checkpointing: in training, keep only the inputs for the backward pass and compute
            the rest again.
    """

    def __init__(
        self,
        query_width: int,
        width: int,
        num_heads: int,
        window_sizes: Sequence[int],
        *,
        zero_init_output: bool = False,
        shared_norms: bool = False,
    ) -> None:
        super().__init__()
        self.query_width, self.gradient_checkpointing = query_width, False
        self.proj_context = nn.Linear(width, width, bias=False)
        self.proj_in = nn.Linear(query_width + width, width, bias=False)
        self.positions = nn.ParameterList(torch.randn(size, width) for size in window_sizes if size > 1)
        self.attention = MultiEncoderAttention(width, num_heads, window_sizes, shared_norms)
        self.norm = nn.LayerNorm(width)
        self.proj_out = nn.Sequential(
            nn.Linear(width, width, bias=False), nn.GELU(), nn.Linear(width, query_width, bias=False)
        )
        if zero_init_output:
            nn.init.zeros_(self.proj_out[2].weight)

    def forward(self, queries: Tensor, windows: VisionWindows, path: Path = "fast") -> Tensor:
        """`[N, query_width]`, or `[1, query_width]` where all start alike, to `[N, query_width]`.
        The two paths give the same."""
        if self.gradient_checkpointing and self.training and torch.is_grad_enabled():
            windows.variances()  # shared by all layers, so computed outside the part that is computed again
            return checkpoint(self._update, queries, windows, path, use_reentrant=False)
        return self._update(queries, windows, path)

    def _update(self, queries: Tensor, windows: VisionWindows, path: Path) -> Tensor:
        joined = self._joined(queries, windows) if path == "plain" else self._joined_fast(queries, windows)
        hidden = self.norm(joined + self.attention(joined, windows, self._places(), path))
        return queries + self.proj_out(hidden)

    def _joined(self, queries: Tensor, windows: VisionWindows) -> Tensor:
        context = windows.context[windows.image]
        return self.proj_in(torch.cat([queries.expand(len(context), -1), self.proj_context(context)], dim=-1))

    def _joined_fast(self, queries: Tensor, windows: VisionWindows) -> Tensor:
        """The context once per image, the query's half once where all queries are one."""
        query_weight, context_weight = self.proj_in.weight.split(
            [self.query_width, self.proj_context.out_features], dim=1
        )
        return (
            F.linear(queries, query_weight)
            + F.linear(self.proj_context(windows.context), context_weight)[windows.image]
        )

    def _places(self) -> list[Tensor | None]:
        places = iter(self.positions)
        return [next(places) if size > 1 else None for size in self.attention.window_sizes]
