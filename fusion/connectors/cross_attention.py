"""Spatial cross-attention: a query looks into its windows in the grids of all encoders, under one
softmax.

This is equation 1 of Cambrian-1 (Tong et al. 2024), where the Spatial Vision Aggregator is
described. For the query at row i and column j of a grid, and K encoders of C channels,

    q*_ij = softmax(q_ij . [k_ij1, ..., k_ijK]^T / sqrt(C)) [v_ij1, ..., v_ijK]      (1)     [1, C]

    q_ij  = W_Q (the query before, at (i, j))                                                [1, C]
    k_ijk = W_K,k F_k[r_k * i : r_k * (i + 1), r_k * j : r_k * (j + 1)]                      [r_k^2, C]
    v_ijk = W_V,k F_k[r_k * i : r_k * (i + 1), r_k * j : r_k * (j + 1)]                      [r_k^2, C]

where F_k is the feature map of encoder k, r_k times as fine as the grid of queries. The released
code, and `MultiEncoderAttention` here, computes it with several heads, and with norms before the
projections of queries, keys and values. `VisionCrossAttentionLayer` puts around it what one layer
of the released model has.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from fusion.connectors.windows import VisionWindows

AttentionPath = Literal["plain", "fast"]


class MultiEncoderAttention(nn.Module):
    """Equation 1: attention of N queries, each over its own few keys from several encoders. Each
    encoder has its own projections.

    With h heads of width d = D / h, for a query q `[D]` and the tokens x_kj `[D]` of encoder k,
    j = 1 ... r_k * r_k:

        k_kj = W_K,k LN_K,k(x_kj)
        v_kj = W_V,k LN_V,k(x_kj)
        a_kj = softmax over all k and j of (W_Q LN_Q(q)) . k_kj / sqrt(d)        in each head
        result = W_O sum over k and j of a_kj v_kj

    Args:
        width: D, of queries, tokens and the result.
        num_heads: h; it divides `width`.
        window_sizes: r_k * r_k, the number of tokens in a window of each encoder.
        shared_norms: use one norm before the keys and values of an encoder instead of two.
    """

    def __init__(
        self, width: int, num_heads: int, window_sizes: Sequence[int], shared_norms: bool = False
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.scale = (width // num_heads) ** -0.5
        self.shared_norms = shared_norms
        self.window_sizes = tuple(window_sizes)
        num_encoders = len(window_sizes)
        self.q_norm = nn.LayerNorm(width)
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_norms = _norms(num_encoders, width)
        self.k_projs = _projections(num_encoders, width)
        self.v_norms = None if shared_norms else _norms(num_encoders, width)
        self.v_projs = _projections(num_encoders, width)
        self.joint_softmax = JointSoftmax(self.window_sizes)
        self.o_proj = nn.Linear(width, width, bias=False)

    def forward(
        self,
        queries: Tensor,
        windows: VisionWindows,
        positions: Sequence[Tensor | None],
        attention_path: AttentionPath,
    ) -> Tensor:
        """Attend, from queries `[N, D]`, or `[1, D]` where all are the same, to `[N, D]`.

        positions: for each encoder the learned places `[r * r, D]` in its windows, or None.
        """
        heads = self._split_heads(self.q_proj(self.q_norm(queries))) * self.scale
        heads = heads.expand(len(windows.image_index), -1, -1)  # [N, h, d]
        attend = self._attend_plain if attention_path == "plain" else self._attend_fast
        return self.o_proj(attend(heads, windows, positions).flatten(1))

    def _attend_plain(
        self, heads: Tensor, windows: VisionWindows, positions: Sequence[Tensor | None]
    ) -> Tensor:
        """The formula of the class as it is written: heads `[N, h, d]` to `[N, h, d]`."""
        keys = []
        values = []
        for index, (tokens, position) in enumerate(zip(windows.tokens, positions, strict=True)):
            if position is not None:
                tokens = tokens + position
            keys.append(self._split_heads(self.k_projs[index](self.k_norms[index](tokens))))
            values.append(self._split_heads(self.v_projs[index](self._v_norm(index)(tokens))))
        scores = torch.einsum("nhd,nkhd->nhk", heads, torch.cat(keys, dim=1))
        weights = self.joint_softmax(scores, windows.masks)
        return torch.einsum("nhk,nkhd->nhd", weights, torch.cat(values, dim=1))

    def _attend_fast(
        self, heads: Tensor, windows: VisionWindows, positions: Sequence[Tensor | None]
    ) -> Tensor:
        """The same result, by `_OneTokenWindows` for windows of one token and by
        `_AbsorbedWindows` for windows of several."""
        of_encoders = []
        for index, position in enumerate(positions):
            kind = _OneTokenWindows if self.window_sizes[index] == 1 else _AbsorbedWindows
            attention = kind(
                heads=heads,
                tokens=windows.tokens[index],
                variance=windows.variances()[index],
                position=position,
                keys=fold_norm(self.k_norms[index], self.k_projs[index]),
                values=fold_norm(self._v_norm(index), self.v_projs[index]),
                eps=self.k_norms[index].eps,
            )
            of_encoders.append(attention)
        scores = torch.cat([each.scores for each in of_encoders], dim=-1)
        weights = self.joint_softmax(scores, windows.masks).split(self.window_sizes, dim=-1)
        return sum(each.weighted_values(own) for each, own in zip(of_encoders, weights, strict=True))

    def _split_heads(self, projected: Tensor) -> Tensor:
        """`[..., D]` as `[..., h, d]`."""
        return projected.unflatten(-1, (self.num_heads, -1))

    def _v_norm(self, index: int) -> nn.LayerNorm:
        return (self.k_norms if self.v_norms is None else self.v_norms)[index]


def _norms(count: int, width: int) -> nn.ModuleList:
    return nn.ModuleList(nn.LayerNorm(width) for _ in range(count))


def _projections(count: int, width: int) -> nn.ModuleList:
    return nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(count))


class JointSoftmax(nn.Module):
    """The softmax of equation 1 over the keys of all encoders together.

    It is a module, so that a forward hook can read the weights: `fusion.pictures` does.
    """

    def __init__(self, window_sizes: Sequence[int]) -> None:
        super().__init__()
        self.window_sizes = tuple(window_sizes)

    def forward(self, scores: Tensor, masks: Sequence[Tensor | None]) -> Tensor:
        """Scores `[N, h, keys]` to weights `[N, h, keys]`; masks: see `VisionWindows`."""
        if any(mask is not None for mask in masks):
            scores = scores.masked_fill(~self._joined_mask(masks, scores)[:, None], float("-inf"))
        return scores.float().softmax(-1).to(scores.dtype)

    def shares(self, weights: Tensor) -> Tensor:
        """How much of the attention goes to each encoder: weights `[N, h, keys]` to float32
        `[N, h, encoders]`."""
        of_encoders = weights.detach().float().split(self.window_sizes, dim=-1)
        return torch.stack([own.sum(-1) for own in of_encoders], dim=-1)

    def _joined_mask(self, masks: Sequence[Tensor | None], scores: Tensor) -> Tensor:
        """`[N, keys]` bool: the masks of all encoders side by side."""
        joined = []
        for mask, size in zip(masks, self.window_sizes, strict=True):
            if mask is None:
                mask = scores.new_ones(len(scores), size, dtype=torch.bool)
            joined.append(mask)
        return torch.cat(joined, dim=1)


class FoldedProjection(NamedTuple):
    """A projection W LN(x) = weight x / sigma + bias, where sigma is the deviation of x; weight
    `[D, D]`, bias `[D]`."""

    weight: Tensor
    bias: Tensor


def fold_norm(norm: nn.LayerNorm, projection: nn.Linear) -> FoldedProjection:
    """Move the scale of a norm, its subtraction of the mean, and its shift into the projection
    behind it.

    The rows of the new weight sum to zero, so that weight x = weight (x - mean(x)).
    """
    scaled = projection.weight * norm.weight
    weight = scaled - scaled.mean(1, keepdim=True)
    return FoldedProjection(weight, projection.weight @ norm.bias)


class _OneTokenWindows:
    """Scores and values of an encoder with one token in each window: one product makes keys and
    values, from tokens that no norm has touched.

    heads `[N, h, d]`, tokens `[N, 1, D]`, variance `[N, 1]` give scores `[N, h, 1]`;
    weighted_values takes weights `[N, h, 1]` and gives `[N, h, d]`.
    """

    def __init__(
        self,
        heads: Tensor,
        tokens: Tensor,
        variance: Tensor,
        position: None,
        keys: FoldedProjection,
        values: FoldedProjection,
        eps: float,
    ) -> None:
        inverse_sigma = (variance + eps).rsqrt().to(tokens.dtype)
        both = F.linear(tokens[:, 0], torch.cat([keys.weight, values.weight])) * inverse_sigma
        both = both + torch.cat([keys.bias, values.bias])
        projected_keys, self.projected_values = both.unflatten(-1, (2, *heads.shape[1:])).unbind(1)
        self.scores = (heads * projected_keys).sum(-1, keepdim=True)

    def weighted_values(self, weights: Tensor) -> Tensor:
        return weights * self.projected_values


class _AbsorbedWindows:
    """Scores and values of an encoder with several tokens in each window, none of which is
    projected or normalised: the projections are absorbed into the query and into the result.

    With W and b from `fold_norm`, the tokens x_j of a window and their learned places p_j:

        sigma_j^2 = var(x_j) + var(p_j) + 2 cov(x_j, p_j) + eps
        q . k_j = ((W_K^T q) . x_j + q . (W_K p_j)) / sigma_j + q . b_K
        sum_j a_j v_j = W_V sum_j (a_j / sigma_j) x_j + sum_j (a_j / sigma_j) W_V p_j + (sum_j a_j) b_V

    heads `[N, h, d]`, tokens `[N, r * r, D]`, variance `[N, r * r]`, position `[r * r, D]` give
    scores `[N, h, r * r]`; weighted_values takes weights `[N, h, r * r]` and gives `[N, h, d]`.
    """

    def __init__(
        self,
        heads: Tensor,
        tokens: Tensor,
        variance: Tensor,
        position: Tensor,
        keys: FoldedProjection,
        values: FoldedProjection,
        eps: float,
    ) -> None:
        split = (heads.shape[1], -1)
        self.tokens = tokens
        self.v_weight = values.weight.unflatten(0, split)  # [h, d, D]
        self.v_bias = values.bias.unflatten(0, split)  # [h, d]
        self.v_position = (position @ values.weight.T).unflatten(-1, split)  # [r * r, h, d]
        self.inverse_sigma = self._inverse_sigma(tokens, variance, position, eps)  # [N, 1, r * r]
        k_weight = keys.weight.unflatten(0, split)  # [h, d, D]
        absorbed = torch.bmm(heads.transpose(0, 1), k_weight).transpose(0, 1)  # [N, h, D]
        k_position = (position @ keys.weight.T).unflatten(-1, split)  # [r * r, h, d]
        position_scores = torch.einsum("nhd,jhd->nhj", heads, k_position)
        bias = (heads * keys.bias.unflatten(0, split)).sum(-1, keepdim=True)
        token_scores = torch.bmm(absorbed, tokens.transpose(1, 2))
        self.scores = (token_scores + position_scores) * self.inverse_sigma + bias

    @staticmethod
    def _inverse_sigma(tokens: Tensor, variance: Tensor, position: Tensor, eps: float) -> Tensor:
        """1 / sigma_j of each token with its learned place, `[N, 1, r * r]`."""
        centered = position - position.mean(-1, keepdim=True)
        covariance = torch.einsum("njc,jc->nj", tokens, centered).float() / tokens.shape[-1]
        square = variance + centered.float().square().mean(-1) + 2 * covariance + eps
        return square.rsqrt().to(tokens.dtype)[:, None]

    def weighted_values(self, weights: Tensor) -> Tensor:
        scaled = weights * self.inverse_sigma
        gathered = torch.bmm(scaled, self.tokens)  # [N, h, D]
        projected = torch.bmm(gathered.transpose(0, 1), self.v_weight.transpose(1, 2)).transpose(0, 1)
        placed = torch.einsum("nhj,jhd->nhd", scaled, self.v_position)
        return projected + placed + weights.sum(-1, keepdim=True) * self.v_bias


class VisionCrossAttentionLayer(nn.Module):
    """One layer of the released model: it updates a query q `[query_width]` from its windows.

        z = W_in [q; W_c context]
        z = LN(z + attention(z))              attention: equation 1, see `MultiEncoderAttention`
        result = q + W_2 GELU(W_1 z)

    Args:
        query_width: width of the queries: the aggregator's width D in a connector, the hidden size
            D_h inside a language model.
        width: D, of tokens, context and everything inside.
        num_heads: heads of the attention; it divides `width`.
        window_sizes: r * r, the tokens in a window of each encoder. Windows of several tokens have
            learned places, `[r * r, D]`, drawn from N(0, 1).
        zero_init_output: start W_2 at zero, so that the layer starts as the identity; the released
            layer does not.
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
        self.query_width = query_width
        self.gradient_checkpointing = False
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

    def forward(
        self, queries: Tensor, windows: VisionWindows, attention_path: AttentionPath = "fast"
    ) -> Tensor:
        """Update queries `[N, query_width]`, or `[1, query_width]` where all start alike, to
        `[N, query_width]`. Both paths give the same."""
        if self.gradient_checkpointing and self.training and torch.is_grad_enabled():
            windows.variances()  # shared by all layers, so computed outside the part that is computed again
            return checkpoint(self._update, queries, windows, attention_path, use_reentrant=False)
        return self._update(queries, windows, attention_path)

    def _update(self, queries: Tensor, windows: VisionWindows, attention_path: AttentionPath) -> Tensor:
        join = self._join_plain if attention_path == "plain" else self._join_fast
        joined = join(queries, windows)
        attended = self.attention(joined, windows, self._positions_of_encoders(), attention_path)
        return queries + self.proj_out(self.norm(joined + attended))

    def _join_plain(self, queries: Tensor, windows: VisionWindows) -> Tensor:
        """W_in [q; W_c context], `[N, D]`, as it is written."""
        context = self.proj_context(windows.context[windows.image_index])
        return self.proj_in(torch.cat([queries.expand(len(context), -1), context], dim=-1))

    def _join_fast(self, queries: Tensor, windows: VisionWindows) -> Tensor:
        """The same, with the context's half computed once for each image, and the query's half once
        where all queries are the same."""
        widths = [self.query_width, self.proj_context.out_features]
        query_weight, context_weight = self.proj_in.weight.split(widths, dim=1)
        context = F.linear(self.proj_context(windows.context), context_weight)  # [B, D]
        return F.linear(queries, query_weight) + context[windows.image_index]

    def _positions_of_encoders(self) -> list[Tensor | None]:
        """For each encoder the learned places in its windows, None for windows of one token."""
        positions = iter(self.positions)
        return [next(positions) if size > 1 else None for size in self.attention.window_sizes]
