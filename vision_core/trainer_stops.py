"""A Trainer that is told to stop: its evaluation is broken off, its last step is saved, and a save that takes too long is told."""

import time
from typing import Any

from transformers import TrainerCallback

from vision_core.distributed import print_once
from vision_core.stopping import StopRequest


class EvaluationBrokenOff(Exception):
    """Raised on all processes alike, between two batches of an evaluation."""


class StopWhenTold(TrainerCallback):
    """Save and leave after a step, or between two batches of an evaluation, in which any process was told to stop.

    The evaluation of the last step is finished: nothing comes behind it that a resumed run would do.
    """

    def __init__(self, stop: StopRequest) -> None:
        self.stop, self.stopped = stop, False

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.stop.agreed():
            self._leave(control)
            control.should_evaluate = control.should_evaluate and state.global_step == state.max_steps

    def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Raises EvaluationBrokenOff. Every process has as many batches as any other, so that all ask at the same place."""
        if state.global_step < state.max_steps and self.stop.agreed():
            self._leave(control)
            raise EvaluationBrokenOff

    def _leave(self, control: Any) -> None:
        self.stopped = control.should_save = control.should_training_stop = True


class WatchSaves(TrainerCallback):
    """Measures every save: from the last thing that was done before it to its end."""

    def __init__(self, stop: StopRequest) -> None:
        self.stop, self.began = stop, time.monotonic()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.began = time.monotonic()

    on_log = on_prediction_step = on_evaluate = on_step_end

    def on_save(self, *args: Any, **kwargs: Any) -> None:
        self.stop.save_took(time.monotonic() - self.began, lambda line: print_once([line]))
