"""Runs crops of several resolutions through one transformer at once, with stochastic depth that
skips the dropped work."""

from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from pretrain.backbone import Backbone

Shape = tuple[int, int]  # (crops of a group, tokens of one of its crops)
KeptRows = list[Tensor]  # of each group, the crops on which a residual branch runs
KeptCrops = list[tuple[KeptRows, KeptRows]]  # of each layer: attention, feed-forward


def forward_crop_groups(
    backbone: Backbone,
    groups: list[Tensor],
    masks: list[Tensor | None] | None = None,
    kept_crops: KeptCrops | None = None,
    recompute: bool = False,
) -> list[Tensor]:
    """Tokens after the final norm for every group of crops, in one pass through the backbone's own
    sub-modules.

    Norms and linear layers see all tokens at once, attention sees one group at a time. The slow
    formula, which a test runs, is

        [backbone(crops, bool_masked_pos=mask).last_hidden_state for crops, mask in zip(groups, masks)]

    With `kept_crops`, each residual branch runs on the kept rows only and counts `crops / kept`
    times (DINOv2 `layers/block.py`).

    Args:
        groups: one tensor `[crops, C, H, W]` per resolution.
        masks: per group `[crops, N]` bool (True: the patch is replaced by the mask token) or None.
        kept_crops: from `draw_kept_crops`; None runs every branch on every crop.
        recompute: keep no activations inside a layer, run it again in the backward pass.

    Returns:
        One tensor `[crops, 1 + R + N, D]` per group.
    """
    masks = masks or [None] * len(groups)
    parts: list[Tensor] = []
    shapes: list[Shape] = []
    for crops, mask in zip(groups, masks, strict=True):
        embedded = backbone.embeddings(crops, bool_masked_pos=mask)  # [crops, 1 + R + N, D]
        shapes.append((embedded.shape[0], embedded.shape[1]))
        parts.append(embedded.flatten(0, 1))
    tokens = torch.cat(parts)  # [tokens of all groups, D]
    run = partial(checkpoint, _run_layer, use_reentrant=False) if recompute else _run_layer
    for index, layer in enumerate(backbone.encoder.layer):
        tokens = run(layer, tokens, shapes, kept_crops[index] if kept_crops else None)
    return _split(backbone.layernorm(tokens), shapes)


def draw_kept_crops(num_layers: int, crops_per_group: list[int], drop_path_rate: float) -> KeptCrops | None:
    """Rows that survive stochastic depth, drawn from torch's global CPU generator:
    max(int(b * (1 - rate)), 1) of each group of b crops.

    Attention and feed-forward draw independently, in every layer. None when the rate is 0.
    """
    if drop_path_rate == 0:
        return None

    def draw() -> KeptRows:
        rows = []
        for crops in crops_per_group:
            num_kept = max(int(crops * (1 - drop_path_rate)), 1)
            rows.append(torch.randperm(crops)[:num_kept])
        return rows

    return [(draw(), draw()) for _ in range(num_layers)]


def _run_layer(
    layer, tokens: Tensor, shapes: list[Shape], kept_rows: tuple[KeptRows, KeptRows] | None
) -> Tensor:
    """One transformer layer on the tokens `[T, D]` of all groups."""
    attention_rows, feed_forward_rows = kept_rows or (None, None)
    tokens = _add_branch(tokens, shapes, attention_rows, partial(_attention_branch, layer))
    return _add_branch(tokens, shapes, feed_forward_rows, partial(_feed_forward_branch, layer))


def _add_branch(tokens: Tensor, shapes: list[Shape], kept_rows: KeptRows | None, branch) -> Tensor:
    """`tokens + branch(tokens)` for `[T, D]`; with `kept_rows` the branch of those crops alone,
    scaled by crops / kept."""
    if kept_rows is None:
        return tokens + branch(tokens, shapes)
    indices: list[Tensor] = []
    scales: list[Tensor] = []
    kept_shapes: list[Shape] = []
    start = 0  # of the group, among the tokens
    for rows, (crops, length) in zip(kept_rows, shapes, strict=True):
        first_tokens = start + rows.to(tokens.device)[:, None] * length
        indices.append((first_tokens + torch.arange(length, device=tokens.device)).flatten())
        scales.append(tokens.new_full((len(rows) * length, 1), crops / len(rows)))
        kept_shapes.append((len(rows), length))
        start += crops * length
    index = torch.cat(indices)
    update = branch(tokens[index], kept_shapes) * torch.cat(scales)
    return tokens.index_add(0, index, update.to(tokens.dtype))


def _attention_branch(layer, tokens: Tensor, shapes: list[Shape]) -> Tensor:
    """Self-attention `[T, D]` within each crop."""
    attention = layer.attention
    normed = layer.norm1(tokens)
    queries = _split(attention.q_proj(normed), shapes)  # per group [crops, tokens, D]
    keys = _split(attention.k_proj(normed), shapes)
    values = _split(attention.v_proj(normed), shapes)
    outputs: list[Tensor] = []
    for query, key, value in zip(queries, keys, values, strict=True):
        attended = _attend(
            _heads(query, attention.head_dim),
            _heads(key, attention.head_dim),
            _heads(value, attention.head_dim),
            attention.scaling,
        )  # [crops, heads, tokens, head_dim]
        outputs.append(attended.transpose(1, 2).flatten(0, 1).flatten(1))
    return layer.layer_scale1(attention.o_proj(torch.cat(outputs)))


def _feed_forward_branch(layer, tokens: Tensor, shapes: list[Shape]) -> Tensor:
    """The feed-forward layer of each token, `[T, D]`."""
    return layer.layer_scale2(layer.mlp(layer.norm2(tokens)))


def _attend(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Scaled dot-product attention of `[crops, heads, tokens, head_dim]`."""
    if query.device.type != "cpu" or query.dtype not in (torch.bfloat16, torch.float16):
        return F.scaled_dot_product_attention(query, key, value, scale=scale)
    # the CPU kernel's backward pass is about four times slower in half precision than in float32
    with torch.autocast("cpu", enabled=False):
        return F.scaled_dot_product_attention(query.float(), key.float(), value.float(), scale=scale)


def _heads(tokens: Tensor, head_dim: int) -> Tensor:
    """`[crops, tokens, D]` as `[crops, heads, tokens, head_dim]`."""
    return tokens.unflatten(-1, (-1, head_dim)).transpose(1, 2)


def _split(tokens: Tensor, shapes: list[Shape]) -> list[Tensor]:
    """`[T, D]` of all groups as one `[crops, tokens, D]` per group."""
    parts = tokens.split([crops * length for crops, length in shapes])
    return [part.unflatten(0, shape) for part, shape in zip(parts, shapes, strict=True)]
