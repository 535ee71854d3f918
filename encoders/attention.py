"""The attention of an encoder's last layer, whatever attention implementation the model runs with,
and the patches that hold most of it."""

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
from encoders.modes import evaluating
from vision_core.errors import UserError

# More keys than this beside the patches are not CLS and registers: such keys are of another layer.
MOST_PREFIX_TOKENS = 32
ROWS_AT_ONCE = 256
MASS_SHARE = 0.6  # of the attention, as Caron et al. 2021 show it

Query = Literal["cls", "pooling", "mean"]


@dataclass(frozen=True)
class LastAttention:
    """The attention that the patches of n images receive.

    Attributes:
        maps: `[n, heads, h, w]`, float32, on the CPU.
        query: who attends. `cls`: the CLS token. `pooling`: the query of an attention pooling head,
            such as SigLIP's. `mean`: all tokens, of which the mean is taken, so that a map says how
            much attention each patch receives.
    """

    maps: Tensor
    query: Query


def attention_maps(encoder: Encoder, pixel_values: Tensor) -> Tensor:
    """The maps of `last_attention(encoder, pixel_values)`, `[n, heads, h, w]`."""
    return last_attention(encoder, pixel_values).maps


def last_attention(encoder: Encoder, pixel_values: Tensor) -> LastAttention:
    """The attention to the patches in the last attention layer, or in the pooling head behind it,
    for normalised images `[n, C, H, W]`.

    It is softmax(q k^T / sqrt(head width)) over all tokens (Vaswani et al. 2017, eq. 1), computed
    in float32, of which the patches' part is returned: a map sums to 1 less what CLS and registers
    get. The queries and keys are those of the layer, behind its norms and rotary positions. Those
    of other layers are not kept.

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
    is_of_images = weights.ndim == 3 and len(weights) == len(pixel_values)
    if not is_of_images or not 0 <= num_prefix <= MOST_PREFIX_TOKENS:
        raise UserError(
            f"{encoder.name}: its last attention does not look at all patches at once, so it makes no map; "
            "choose a plain ViT"
        )
    return LastAttention(weights[..., num_prefix:].unflatten(-1, grid).cpu(), query)


def keep_mass(attention: Tensor, share: float = MASS_SHARE) -> Tensor:
    """A bool mask of the fewest patches of `[..., h, w]` that hold `share` of the attention, the
    greatest first (Caron et al. 2021, section 4.2.2 and figure 4).

    Raises UserError for attention that is not finite, negative or without mass.
    """
    values, order = attention.flatten(-2).double().sort(dim=-1, descending=True, stable=True)
    mass = values.sum(-1, keepdim=True)
    if not torch.isfinite(values).all() or (values < 0).any() or (mass <= 0).any():
        raise UserError(
            "emergent segmentation: attention must be finite, not negative and not all zero; "
            "take it behind the softmax, in float32"
        )
    values = values / mass
    # a patch stays unless those before it hold the share already, up to the rounding of a softmax
    # in float32
    is_kept = values.cumsum(-1) - values < share - 1e-6
    return torch.zeros_like(is_kept).scatter(-1, order, is_kept).view(attention.shape)


@dataclass(frozen=True)
class _Call:
    """One call of attention.

    Attributes:
        weights: a function that returns `[n, heads, rows, keys]` for some rows, which are queries.
        num_queries, num_keys: how many there are.
    """

    weights: Callable[[slice], Tensor]
    num_queries: int
    num_keys: int


class _LastCall(TorchFunctionMode):
    """Lets all calls of attention inside it through, and remembers the last one.
    nn.MultiheadAttention leaves its fast path for such a mode."""

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
    """The attention `[n, heads, keys]` that a map shows, and who attends. Fewer queries than keys
    are those of a pooling head."""
    query: Query = "mean"
    if call.num_queries < call.num_keys:
        query = "pooling"
    elif has_cls:
        query = "cls"
    count = 1 if query == "cls" else call.num_queries
    total = 0
    for start in range(0, count, ROWS_AT_ONCE):
        rows = slice(start, min(start + ROWS_AT_ONCE, count))
        total = total + call.weights(rows).sum(-2)
    return total / count, query


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
    """A call of F.scaled_dot_product_attention, whose arguments these are: query `[n, heads, L, d]`,
    key `[n, key heads, S, d]`."""
    if scale is None:
        scale = query.shape[-1] ** -0.5
    if is_causal:
        attn_mask = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device).tril()

    def weights(rows: slice) -> Tensor:
        keys = key.repeat_interleave(query.shape[1] // key.shape[1], 1) if enable_gqa else key
        scores = query[:, :, rows].float() @ keys.float().mT * scale
        if attn_mask is not None:
            scores = _masked(scores, _rows_of(attn_mask, rows))
        return scores.softmax(-1)

    return _Call(weights, query.shape[-2], key.shape[-2])


def _multi_head(arguments: dict[str, Any]) -> _Call:
    """A call of F.multi_head_attention_forward with these arguments: query `[L, n, D]`, key `[S, n,
    D]`."""
    query = arguments["query"]
    mask = arguments.get("attn_mask")

    def weights(rows: slice) -> Tensor:
        changed = {
            "query": query[rows],
            "attn_mask": None if mask is None else _rows_of(mask, rows),
            "need_weights": True,
            "average_attn_weights": False,
        }
        exact = {name: _in_float32(value) for name, value in (arguments | changed).items()}
        return F.multi_head_attention_forward(**exact)[1]

    return _Call(weights, len(query), len(arguments["key"]))


def _in_float32(value: Any) -> Any:
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.float()
    return value


def _masked(scores: Tensor, mask: Tensor) -> Tensor:
    """Scores with a mask: of bools, True takes part; numbers are added."""
    if mask.dtype == torch.bool:
        return scores.masked_fill(~mask, float("-inf"))
    return scores + mask


def _rows_of(mask: Tensor, rows: slice) -> Tensor:
    """Some rows of a mask `[..., L, S]`, or `[..., 1, S]`, which is the same for all rows."""
    return mask[..., rows, :] if mask.shape[-2] > 1 else mask


@contextmanager
def _interceptable(encoder: nn.Module) -> Iterator[None]:
    """Inside, models of transformers and timm call F.scaled_dot_product_attention; afterwards what
    they called before."""
    implementations = []
    layers_of_timm = []
    for module in encoder.modules():
        if isinstance(module, PreTrainedModel) and module._supports_sdpa:
            implementations.append((module, module.config._attn_implementation))
        if hasattr(module, "fused_attn"):
            layers_of_timm.append((module, module.fused_attn))
    try:
        for model, _ in implementations:
            model.set_attn_implementation("sdpa")
        for layer, _ in layers_of_timm:
            layer.fused_attn = True
        yield
    finally:
        # set_attn_implementation would check, and for some kernels download, what the model came
        # with
        for model, before in implementations:
            model.config._attn_implementation = before
        for layer, before in layers_of_timm:
            layer.fused_attn = before
