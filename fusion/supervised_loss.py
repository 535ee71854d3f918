"""Cross-entropy at the positions that are learnt, a chunk at a time: the logits of a prompt or of an image are never computed."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

IGNORED = -100
CHUNK = 1024  # positions whose logits are in memory at once
AFTER_THE_HEAD = (
    "final_logit_softcapping",
    "logits_soft_cap",
    "logits_scaling",
    "logit_scale",
)  # settings by which a family changes its logits


def supervised_loss(
    language_model: PreTrainedModel, labels: Tensor, num_items_in_batch: Tensor | int | None = None, chunk: int = CHUNK, **inputs: Any
) -> Tensor:
    """The loss of `language_model(**inputs, labels=labels)`, a scalar in float32, without the logits of positions that are not learnt.

    loss = -sum over b, t with labels[b, t + 1] != -100 of log_softmax(head(states[b, t]))[labels[b, t + 1]] / their number

    The head computes `chunk` positions at a time, and again in the backward pass; of a language model that caps or scales its logits behind the head,
    all learnt positions at once. num_items_in_batch: the number to divide by, where a batch is one of several to a step.
    """
    target = F.pad(labels, (0, 1), value=IGNORED)[:, 1:].flatten()
    learnt = (target != IGNORED).nonzero().flatten()
    target = target[learnt]
    if any(getattr(language_model.config, name, None) for name in AFTER_THE_HEAD):
        chunk = max(len(target), 1)
    states, logits = _states_and_first_logits(language_model, learnt, chunk, inputs)
    total = _summed_loss(logits, target[:chunk])
    head = language_model.get_output_embeddings()
    for some, theirs in zip(states.split(chunk)[1:], target.split(chunk)[1:], strict=True):
        total = total + checkpoint(lambda part, goal: _summed_loss(head(part), goal), some, theirs, use_reentrant=False)
    return total / (max(len(target), 1) if num_items_in_batch is None else num_items_in_batch)


def _states_and_first_logits(language_model: PreTrainedModel, learnt: Tensor, chunk: int, inputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """States before the head at the flat positions `learnt`, `[n, H]`, and the logits `[<= chunk, V]` of the first of them."""
    seen: dict[str, Tensor] = {}

    def only_learnt(head: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        seen["states"] = args[0].flatten(0, 1)[learnt.to(args[0].device)]
        return (seen["states"][None, :chunk], *args[1:])

    def keep(head: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        seen["of_head"] = output

    head = language_model.get_output_embeddings()
    hooks = [head.register_forward_pre_hook(only_learnt), head.register_forward_hook(keep)]
    try:
        logits = language_model(**inputs, use_cache=False).logits
    finally:
        for hook in hooks:
            hook.remove()
    assert len(seen["states"]) <= chunk or logits is seen["of_head"], (
        f"{type(language_model).__name__} changes its logits behind the head by a setting that AFTER_THE_HEAD does not have"
    )
    return seen["states"], logits[0]


def _summed_loss(logits: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(logits.float(), target.to(logits.device), reduction="sum")
