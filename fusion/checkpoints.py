"""Loading fused models: all tensors or none."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from vision_core.errors import UserError

ALIGNMENT = 64  # bytes, of tensors that torch allocates on a CPU


def load_strictly(
    from_pretrained: Callable[..., Any], *args: Any, output_loading_info: bool = False, **kwargs: Any
) -> Any:
    """`from_pretrained(*args, **kwargs)`. Raises UserError where a tensor is missing, left over or
    of another shape.

    On the CPU the weights are at last taken out of the mapped file, aligned as torch aligns its
    own: products of one row round by alignment, and a loaded model is to give what the saved one
    gave, to the bit.
    """
    kwargs["ignore_mismatched_sizes"] = True  # they are reported below, with the others
    model, info = from_pretrained(*args, output_loading_info=True, **kwargs)
    problems = [
        _named("lacks", info["missing_keys"]),
        _named("has tensors that the model does not know:", info["unexpected_keys"]),
        _named("has tensors of another shape:", info["mismatched_keys"]),
    ]
    found = "; it ".join(problem for problem in problems if problem)
    if found:
        raise UserError(
            f"the checkpoint {args[0] if args else ''} does not fit its config.json: it {found}; save the whole model again"
        )
    for tensor in [*model.parameters(), *model.buffers()]:
        if tensor.device.type == "cpu" and tensor.data_ptr() % ALIGNMENT:
            tensor.data = tensor.data.clone()
    return (model, info) if output_loading_info else model


def _named(what: str, keys: Iterable[Any]) -> str:
    names = sorted(str(key[0] if isinstance(key, tuple) else key) for key in keys)
    return (
        f"{what} {', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}"
        if names
        else ""
    )
