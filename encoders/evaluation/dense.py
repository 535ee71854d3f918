"""Small heads on cached maps of frozen features, as all dense probes train them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count, islice

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm

from vision_core.errors import UserError
from vision_core.randomness import numpy_generator, seed_of

TARGETS_PER_PATCH = 4  # rows and columns of a training target for one of the map's
GRADIENT_CLIP = 35.0
NUM_KEPT = 8  # predictions that a result holds for pictures

Rows = Sequence[Tensor]
Loss = Callable[[Tensor, Tensor, int], Tensor]


def train_head(
    head: nn.Module,
    loss: Loss,
    inputs: Sequence[Rows],
    targets: Tensor,
    *,
    iterations: int,
    batch_size: int,
    learning_rate: float,
    weight_decay: float,
    warmup: float,
    seed: int,
    progress: bool,
) -> None:
    """Minimise `loss(head(*batch of each of inputs), batch of targets, step)`; the head is left in
    evaluation mode.

    AdamW, gradients clipped to a norm of 35, `one_cycle` with `warmup` as a share of the
    iterations. Rows of `inputs` are read batch by batch. Raises UserError for features that are not
    finite, and for a head that has diverged.
    """
    optimizer = AdamW(head.parameters(), lr=learning_rate, weight_decay=weight_decay)
    schedule = LambdaLR(optimizer, lambda step: one_cycle(step, iterations, warmup))
    device = next(head.parameters()).device
    head.train()
    batches = shuffled_batches(len(targets), batch_size, iterations, seed)
    bar = tqdm(batches, desc="dense head", total=iterations, disable=not progress, leave=False)
    for step, indices in enumerate(bar):
        value = loss(head(*gather(inputs, indices, device)), targets[indices].to(device), step)
        optimizer.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(head.parameters(), GRADIENT_CLIP)
        optimizer.step()
        schedule.step()
    head.eval()
    if not all(parameter.isfinite().all() for parameter in head.parameters()):
        raise UserError(
            "the dense head has diverged: its features are too large; "
            "take features behind the model's final norm"
        )


def one_cycle(step: int, iterations: int, warmup: float) -> float:
    """Share of the learning rate: a cosine from 1 to 0 over all `iterations` times a linear rise
    over the first `warmup` of them."""
    rise = min(1.0, (step + 1) / max(1.0, warmup * iterations))
    return rise * (1 + math.cos(math.pi * step / iterations)) / 2


def shuffled_batches(num_images: int, batch_size: int, iterations: int, seed: int) -> Iterator[list[int]]:
    """Indices for every iteration: epochs, each in an order drawn from `seed` and its number,
    joined end to end."""
    order = _endless_order(num_images, seed)
    for _ in range(iterations):
        yield list(islice(order, min(batch_size, num_images)))


def _endless_order(num_images: int, seed: int) -> Iterator[int]:
    for epoch in count():
        yield from numpy_generator(seed, "dense batches", epoch).permutation(num_images).tolist()


@torch.no_grad()
def head_outputs(head: nn.Module, inputs: Sequence[Rows], batch_size: int) -> Iterator[Tensor]:
    """The head's output for every image in turn, with a batch dimension of 1."""
    device = next(head.parameters()).device
    num_images = len(inputs[0])
    for start in range(0, num_images, batch_size):
        indices = list(range(start, min(start + batch_size, num_images)))
        yield from head(*gather(inputs, indices, device)).split(1)


def gather(inputs: Sequence[Rows], indices: Sequence[int], device: torch.device) -> list[Tensor]:
    """A float32 batch of each of `inputs`, read row by row: they may lie on disk. Raises UserError
    for values that are not finite."""
    batches = []
    for rows in inputs:
        batch = torch.stack([rows[index] for index in indices]).to(device).float()
        # the least and the greatest number are found ten times faster than every number is asked
        if not torch.stack(batch.aminmax()).isfinite().all():
            row = next(row for row, values in enumerate(batch) if not values.isfinite().all())
            raise UserError(
                f"the features of image {indices[row]} are not finite; "
                "extract them in float32, or from another checkpoint"
            )
        batches.append(batch)
    return batches


def training_targets(targets: Rows, grid: Sequence[int], dtype: torch.dtype) -> Tensor:
    """`[n, H, W]`: every target `[height, width]` resized to four times the grid, or to the first
    target's own size where that is less.

    The nearest pixel's value is taken, so that what counts nowhere stays exact.
    """
    size = []
    for side, own in zip(grid, targets[0].shape, strict=True):
        size.append(max(side, min(TARGETS_PER_PATCH * side, own)))
    resized = []
    for index in range(len(targets)):
        target = F.interpolate(targets[index][None, None].float(), size, mode="nearest-exact")
        resized.append(target[0].to(dtype))
    return torch.cat(resized)


@contextmanager
def seeded(device: torch.device | str, *names: int | str) -> Iterator[None]:
    """Torch's draws inside are a function of `names`; outside nothing changes."""
    devices = [device] if torch.device(device).type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed_of(*names))
        yield


def check_rows(task: str, split: str, inputs: Sequence[Rows], targets: Rows) -> None:
    """Raise UserError unless there is a target for every row of each of `inputs`, and at least
    one."""
    for rows in inputs:
        if len(rows) != len(targets):
            raise UserError(
                f"{task}: {len(rows)} {split} maps and {len(targets)} annotations; give one annotation per image"
            )
    if not len(targets):
        raise UserError(f"{task}: no {split} images; name a data set that has some")
