"""Load fused models strictly: all tensors or none."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

from vision_core.errors import UserError

ALIGNMENT = 64  # bytes, to which torch aligns the tensors that it allocates on a CPU
NAMES_SHOWN = 3  # of the tensors that do not fit


def load_strictly(
    from_pretrained: Callable[..., Any], *args: Any, output_loading_info: bool = False, **kwargs: Any
) -> Any:
    """Call `from_pretrained(*args, **kwargs)`, and raise UserError where a tensor is missing, left
    over or of another shape.

    Weights on the CPU are copied out of the mapped file at last, aligned as torch aligns its own:
    products of one row round by alignment, and a loaded model must give what the saved one gave, to
    the bit.
    """
    kwargs["ignore_mismatched_sizes"] = True  # they are reported below, with the others
    model, info = from_pretrained(*args, output_loading_info=True, **kwargs)
    problems = [
        _listed("lacks", info["missing_keys"]),
        _listed("has tensors that the model does not know:", info["unexpected_keys"]),
        _listed("has tensors of another shape:", info["mismatched_keys"]),
    ]
    found = "; it ".join(problem for problem in problems if problem)
    if found:
        raise UserError(
            f"the checkpoint {args[0] if args else ''} does not fit its config.json: it {found}; "
            "save the whole model again"
        )
    _align_weights(model)
    return (model, info) if output_loading_info else model


def _align_weights(model: nn.Module) -> None:
    for tensor in [*model.parameters(), *model.buffers()]:
        if tensor.device.type == "cpu" and tensor.data_ptr() % ALIGNMENT:
            tensor.data = tensor.data.clone()


def _listed(problem: str, keys: Iterable[Any]) -> str:
    """The problem with the names of its first tensors, or nothing where there are none.

    A key is a name, or a tuple that begins with one.
    """
    names = sorted(str(key[0] if isinstance(key, tuple) else key) for key in keys)
    if not names:
        return ""
    text = f"{problem} {', '.join(names[:NAMES_SHOWN])}"
    if len(names) > NAMES_SHOWN:
        text += f" and {len(names) - NAMES_SHOWN} more"
    return text
