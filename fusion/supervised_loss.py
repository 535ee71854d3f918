"""Cross-entropy at the positions that are learnt, a chunk at a time. The logits of a prompt or of an
image are never computed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from fusion.labels import LABEL_IGNORED

CHUNK = 1024  # positions whose logits are in memory at once
AFTER_THE_HEAD = (  # settings by which a family changes its logits behind the head
    "final_logit_softcapping",
    "logits_soft_cap",
    "logits_scaling",
    "logit_scale",
)
PROBE = 1024.0  # is exact in every float type, and so large that a cap on logits would change it

HeadForward = Callable[..., Tensor]


def supervised_loss(
    language_model: PreTrainedModel,
    labels: Tensor,
    num_items_in_batch: Tensor | int | None = None,
    chunk: int = CHUNK,
    **inputs: Any,
) -> Tensor:
    """Compute the loss of `language_model(**inputs, labels=labels)`, a scalar in float32, without
    the logits of positions that are not learnt.

    loss = - sum over b and t with labels[b, t + 1] != LABEL_IGNORED of
               log_softmax(head(states[b, t]))[labels[b, t + 1]]
           / the number of these positions

    Logits are computed for `chunk` positions at a time, and again in the backward pass. Where a
    language model caps or scales its logits behind the head, they are computed for all learnt
    positions at once.

    The head is called once, whatever the number of learnt positions. ZeRO-3 and FSDP gather its
    weight around each call of the module, on all processes together, and processes have different
    numbers of learnt positions. So the chunks are inside that one call: the weight is gathered once
    for all of them, and once more for their backward pass.

    num_items_in_batch: the number to divide by, where a batch is one of several to a step.
    """
    target = F.pad(labels, (0, 1), value=LABEL_IGNORED)[:, 1:].flatten()
    learnt = (target != LABEL_IGNORED).nonzero().flatten()
    target = target[learnt]
    number = max(len(target), 1) if num_items_in_batch is None else num_items_in_batch
    head = language_model.get_output_embeddings()
    if any(getattr(language_model.config, name, None) for name in AFTER_THE_HEAD):
        with _replaced_forward(head, partial(_learnt_logits, learnt)):
            logits = language_model(**inputs, use_cache=False).logits
        return _summed_loss(logits[0], target) / number
    with _replaced_forward(head, partial(_loss_as_logits, learnt, target, chunk)):
        logits = language_model(**inputs, use_cache=False).logits
    return _loss_in(logits, type(language_model).__name__) / number


@contextmanager
def _replaced_forward(head: nn.Module, forward: Callable[..., Tensor]) -> Iterator[None]:
    """Inside the context, the module `head` computes `forward(its own forward, states)`. Hooks of
    the module, such as those that shard its weight, still run around it."""
    own_forward = head.forward
    on_instance = head.__dict__.get("forward")
    head.forward = partial(forward, own_forward)
    try:
        yield
    finally:
        if on_instance is None:
            del head.forward
        else:
            head.forward = on_instance


def _learnt_logits(learnt: Tensor, head_forward: HeadForward, states: Tensor) -> Tensor:
    """Logits `[1, n, V]` of the flat positions `learnt` `[n]` of `states` `[B, T, D_h]`."""
    return head_forward(states.flatten(0, 1)[learnt.to(states.device)][None])


def _loss_as_logits(
    learnt: Tensor, target: Tensor, chunk: int, head_forward: HeadForward, states: Tensor
) -> Tensor:
    """What passes through the language model in place of logits, `[1, 2, 2]` in float32: the summed
    loss, and below it `PROBE`."""
    chosen = states.flatten(0, 1)[learnt.to(states.device)]
    *others, last = zip(chosen.split(chunk), target.split(chunk), strict=True)
    # The backward pass begins with the last chunk: its logits are used and freed before those of
    # other chunks are computed again.
    total = _chunk_loss(head_forward, *last)
    for chunk_states, chunk_target in others:
        loss = checkpoint(_chunk_loss, head_forward, chunk_states, chunk_target, use_reentrant=False)
        total = total + loss
    return torch.stack([total, torch.full_like(total, PROBE)])[None, :, None].expand(1, 2, 2)


def _loss_in(logits: Tensor, name: str) -> Tensor:
    """Take the loss out of what `_loss_as_logits` gave, `[1, 2, 2]`, after its way through the
    language model `name`, which must not change it."""
    is_untouched = (
        logits.shape == (1, 2, 2) and logits.dtype == torch.float32 and bool((logits[:, 1] == PROBE).all())
    )
    assert is_untouched, (
        f"{name} changes its logits behind the head by a setting that AFTER_THE_HEAD does not have"
    )
    return logits[0, 0, 0]


def _chunk_loss(head_forward: HeadForward, states: Tensor, target: Tensor) -> Tensor:
    """The summed loss of `[n, D_h]` states before the head and `[n]` tokens."""
    return _summed_loss(head_forward(states), target)


def _summed_loss(logits: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(logits.float(), target.to(logits.device), reduction="sum")
