"""Stop a Trainer that is told to: its evaluation is broken off and its last step is saved.

A step that would leave too little of the grace time for its save is broken off too, between two of
its micro-batches.
"""

import random
import time
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback

from vision_core.processes.distributed import print_once
from vision_core.processes.stopping import StopRequest


class EvaluationBrokenOff(Exception):
    """Raised on all processes alike, between two batches of an evaluation."""


class StopWhenTold(TrainerCallback):
    """Save and leave after a step, or between two batches of an evaluation, in which any process
    was told to stop.

    The evaluation of the last step is finished: nothing comes behind it that a resumed run would
    do.
    can_break_off: whether the Trainer may leave a step between two micro-batches.
    """

    def __init__(self, stop: StopRequest, can_break_off: bool) -> None:
        self.stop = stop
        self.can_break_off = can_break_off
        self.stopped = self.broke_off = False

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Between two micro-batches of a step."""
        if self.stop.breaks_off():
            self.broke_off = True
            self._leave(control)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.stop.agreed_at_step_end(self.can_break_off):
            self._leave(control)
            control.should_evaluate = control.should_evaluate and state.global_step == state.max_steps

    def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Raises EvaluationBrokenOff. Every process has as many batches as any other, so that all
        ask at the same place."""
        if state.global_step < state.max_steps and self.stop.agreed():
            self._leave(control)
            raise EvaluationBrokenOff

    def _leave(self, control: Any) -> None:
        self.stopped = control.should_save = control.should_training_stop = True


class WatchTimes(TrainerCallback):
    """Measures every step and every save: from the last thing that was done before it to its
    end."""

    def __init__(self, stop: StopRequest) -> None:
        self.stop = stop
        self.began = time.monotonic()

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self._passed()

    on_log = on_prediction_step = on_evaluate = on_train_begin

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.stop.step_took(self._passed())

    def on_save(self, *args: Any, **kwargs: Any) -> None:
        self.stop.save_took(self._passed(), lambda line: print_once([line]))

    def _passed(self) -> float:
        before = self.began
        self.began = time.monotonic()
        return self.began - before


def random_states() -> dict[str, Any]:
    """Of all generators that transformers' Trainer keeps in a checkpoint on CPUs and NVIDIA's
    GPUs."""
    states = {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "cpu": torch.random.get_rng_state(),
    }
    return states | ({"cuda": torch.cuda.get_rng_state_all()} if torch.cuda.is_available() else {})


def put_back_random_states(states: dict[str, Any]) -> None:
    """The inverse of `random_states`."""
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    torch.random.set_rng_state(states["cpu"])
    if "cuda" in states:
        torch.cuda.set_rng_state_all(states["cuda"])
