"""What the last attention layer of an encoder looks at, whatever attention implementation the model
runs with."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

from encoders.base import Encoder
from encoders.evaluation.features import evaluating
from vision_core.errors import UserError

MOST_PREFIX_TOKENS = (
    32  # more keys beside the patches than CLS and registers: the keys are no patches of the last layer
)
ROWS_AT_ONCE = 256

Query = Literal["cls", "pooling", "mean"]


@dataclass(frozen=True)
class LastAttention:
    """maps: `[n, heads, rows, columns]`, float32, on the CPU. query: who attends.

    `cls`: the CLS token. `pooling`: the query of an attention pooling head, such as SigLIP's.
    `mean`: all tokens, of which the mean is taken, so that a map says how much attention each patch
    receives.
    """

    maps: Tensor
    query: Query


def attention_maps(encoder: Encoder, pixel_values: Tensor) -> Tensor:
    """`last_attention(encoder, pixel_values).maps`, `[n, heads, rows, columns]`."""
    return last_attention(encoder, pixel_values).maps


def last_attention(encoder: Encoder, pixel_values: Tensor) -> LastAttention:
    """Attention to the patches in the last attention layer, or in the pooling head behind it, for
    normalised `[n, C, H, W]`.

    softmax(q k^T / sqrt(head width)) over all tokens (Vaswani et al. 2017, eq. 1), computed in
    float32, of which the patches' part is returned: a map sums to 1 less what CLS and registers
    get. The layer's own queries and keys are used, behind its norms and rotary positions, and no
    other layer's are held.

    Raises UserError for an encoder without attention, or with one that looks at parts of the image
    only (Swin).
    """
    with evaluating(encoder), _interceptable(encoder), torch.compiler.set_stance("force_eager"):
        with _LastCall() as mode:
            features = encoder(pixel_values.to(encoder.device), [-1])
        if mode.call is None:
            raise UserError(f"{encoder.name} has no attention that can be shown; choose a vision transformer")
        weights, query = _weights_of_interest(mode.call, features.cls is not None)
    grid = features.patch_map.shape[-2:]
    num_prefix = weights.shape[-1] - grid.numel()
    if weights.ndim != 3 or len(weights) != len(pixel_values) or not 0 <= num_prefix <= MOST_PREFIX_TOKENS:
        raise UserError(
            f"{encoder.name}: its last attention does not look at all patches at once, so it makes no map; choose a plain ViT"
        )
    return LastAttention(weights[..., num_prefix:].unflatten(-1, grid).cpu(), query)


@dataclass(frozen=True)
class _Call:
    """One call of attention. weights: rows (queries) -> `[n, heads, rows, keys]`."""

    weights: Callable[[slice], Tensor]
    num_queries: int
    num_keys: int


class _LastCall(TorchFunctionMode):
    """Remembers the last call of attention inside it and lets all of them through;
    nn.MultiheadAttention leaves its fast path for it."""

    call: _Call | None = None

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if func is F.scaled_dot_product_attention:
            self.call = _scaled_dot_product(*args, **(kwargs or {}))
        elif func is F.multi_head_attention_forward:
            self.call = _multi_head(inspect.signature(func).bind(*args, **(kwargs or {})).arguments)
        return func(*args, **(kwargs or {}))


def _weights_of_interest(call: _Call, has_cls: bool) -> tuple[Tensor, Query]:
    """`[n, heads, keys]`, and whose they are. Fewer queries than keys: a pooling head."""
    query: Query = "pooling" if call.num_queries < call.num_keys else "cls" if has_cls else "mean"
    count = 1 if query == "cls" else call.num_queries
    parts = [slice(start, min(start + ROWS_AT_ONCE, count)) for start in range(0, count, ROWS_AT_ONCE)]
    return sum(call.weights(rows).sum(-2) for rows in parts) / count, query


def _scaled_dot_product(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> _Call:
    """The arguments are those of F.scaled_dot_product_attention: query `[n, heads, L, d]`, key `[n,
    key heads, S, d]`."""
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    if is_causal:
        attn_mask = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device).tril()

    def weights(rows: slice) -> Tensor:
        keys = key.repeat_interleave(query.shape[1] // key.shape[1], 1) if enable_gqa else key
        scores = query[:, :, rows].float() @ keys.float().mT * scale
        return (scores if attn_mask is None else _masked(scores, _rows_of(attn_mask, rows))).softmax(-1)

    return _Call(weights, query.shape[-2], key.shape[-2])


def _multi_head(arguments: dict[str, Any]) -> _Call:
    """`arguments` are those of F.multi_head_attention_forward: query `[L, n, D]`, key `[S, n,
    D]`."""
    query, mask = arguments["query"], arguments.get("attn_mask")

    def weights(rows: slice) -> Tensor:
        chosen = {"query": query[rows], "attn_mask": None if mask is None else _rows_of(mask, rows)}
        exact = {
            name: value.float() if isinstance(value, Tensor) and value.is_floating_point() else value
            for name, value in (arguments | chosen).items()
        }
        return F.multi_head_attention_forward(
            **exact | {"need_weights": True, "average_attn_weights": False}
        )[1]

    return _Call(weights, len(query), len(arguments["key"]))


def _masked(scores: Tensor, mask: Tensor) -> Tensor:
    """True takes part, a number is added."""
    return scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask


def _rows_of(mask: Tensor, rows: slice) -> Tensor:
    """Of `[..., L, S]`, or of `[..., 1, S]`, which is the same for all rows."""
    return mask[..., rows, :] if mask.shape[-2] > 1 else mask


@contextmanager
def _interceptable(encoder: nn.Module) -> Iterator[None]:
    """Inside, models of transformers and timm call F.scaled_dot_product_attention; afterwards what
    they called before."""
    configs = [
        (each, each.config._attn_implementation)
        for each in encoder.modules()
        if isinstance(each, PreTrainedModel) and each._supports_sdpa
    ]
    fused = [(each, each.fused_attn) for each in encoder.modules() if hasattr(each, "fused_attn")]
    try:
        for model, _ in configs:
            model.set_attn_implementation("sdpa")
        for layer, _ in fused:
            layer.fused_attn = True
        yield
    finally:
        # set_attn_implementation would check, and for some kernels download, what the model came
        # with
        for model, before in configs:
            model.config._attn_implementation = before
        for layer, before in fused:
            layer.fused_attn = before
