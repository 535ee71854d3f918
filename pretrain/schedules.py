"""Schedules over optimizer steps, with the published end points (DINOv2 `utils/utils.py`,
CosineScheduler)."""

import math
from typing import Literal

import numpy as np

from vision_core.errors import UserError


def cosine_schedule(
    base: float, final: float, total_steps: int, warmup_steps: int = 0, start_warmup: float = 0.0
) -> np.ndarray:
    """Float64 `[total_steps]`: linear from `start_warmup` to `base`, then a half cosine towards
    `final`.

        warm-up: linspace(start_warmup, base, warmup_steps), both ends included
        then, for i = 0 .. n - 1: final + (base - final) / 2 * (1 + cos(pi * i / n))

    The cosine never quite reaches `final`.
    """
    if warmup_steps > total_steps:
        raise UserError(
            f"a warm-up of {warmup_steps} steps is longer than the run of {total_steps}; shorten it"
        )
    warmup = np.linspace(start_warmup, base, warmup_steps)
    steps_left = total_steps - warmup_steps
    progress = np.arange(steps_left) / max(steps_left, 1)
    return np.concatenate([warmup, final + 0.5 * (base - final) * (1 + np.cos(np.pi * progress))])


def linear_warmup(start: float, end: float, warmup_steps: int, total_steps: int) -> np.ndarray:
    """Float64 `[total_steps]`: linspace(start, end, warmup_steps), then constant `end`."""
    rise = np.linspace(start, end, warmup_steps)
    return np.concatenate([rise, np.full(max(total_steps - warmup_steps, 0), end)])[:total_steps]


def frozen(schedule: np.ndarray, steps: int) -> np.ndarray:
    """A copy of a schedule whose first `steps` values are 0."""
    copy = schedule.copy()
    copy[:steps] = 0
    return copy


def scaled_learning_rate(base: float, global_batch: int, rule: Literal["sqrt", "linear", "none"]) -> float:
    """`base` for a batch of 1024 (sqrt rule, DINOv2) or of 256 (linear rule, DINO), scaled to
    `global_batch`."""
    if rule == "sqrt":
        return base * math.sqrt(global_batch / 1024)
    if rule == "linear":
        return base * global_batch / 256
    return base
