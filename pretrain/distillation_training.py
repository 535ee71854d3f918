"""The loop of DINOv2 training: load, step, check, evaluate, save. `pretrain/dinov2.py` builds its
parts."""

import time
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from pretrain.param_groups import apply_schedules, clip_per_module
from pretrain.run.batch_reader import BatchReader
from pretrain.run.health_check import HealthCheck
from pretrain.run.knn_evaluation import KnnEvaluation
from pretrain.run.loss_scale import LossScaler
from pretrain.run.monitor import Monitor, peak_memory_gib
from pretrain.run.run_files import RunFiles
from pretrain.self_distillation import SelfDistillation
from vision_core.errors import UserError
from vision_core.processes.distributed import gather_objects, mean_over_processes
from vision_core.processes.stopping import StopRequest
from vision_core.randomness import seed_of
from vision_core.runs.run_folder import RunFolder, how_to_go_on

MAX_SKIPPED_IN_A_ROW = 3
METHOD_INPUTS = ("global_crops", "local_crops", "masks", "mask_indices", "mask_weights")

Outcome = Literal["taken", "skipped", "rescaled", "broken off"]


@dataclass
class DistillationTrainer:
    """One run: its parts, and the loop that calls each of them when it is due.

    model: `method`, as accelerate has prepared it for several processes. schedules: the value of
    everything that changes with the step, `[max_steps]` each. run: the folder, on the main process
    alone. course: what a checkpoint holds of the run that never changes.
    """

    accelerator: Accelerator
    model: nn.Module
    method: SelfDistillation
    optimizer: torch.optim.Optimizer
    scaler: LossScaler
    schedules: dict[str, np.ndarray]
    batches: BatchReader
    monitor: Monitor
    health: HealthCheck
    knn: KnnEvaluation
    files: RunFiles
    run: RunFolder | None
    output_dir: Path
    course: dict[str, Any]
    seed: int
    max_steps: int
    max_grad_norm: float
    step: int = 0
    skipped_in_a_row: int = 0
    latest: dict[str, Tensor] = field(default_factory=dict)  # losses and norms of the last step taken

    def train(self, stop: StopRequest) -> None:
        """Take steps until the last one, or until the run is told to stop."""
        stopped = False
        while self.step < self.max_steps and not stopped:
            began = time.monotonic()
            micro_batches = self.batches.next_step()
            outcome = self.training_step(micro_batches, stop)
            if outcome == "broken off":
                self.batches.go_back()
                self.save(needed=True)
                return
            stop.step_took(time.monotonic() - began)
            self.step += 1
            self.refuse_endless_skips(outcome)
            is_last = self.step == self.max_steps
            stopped = stop.agreed_at_step_end(can_break_off=len(micro_batches) > 1)
            if self.health.is_due(self.step):
                self.health.check(self.step, self.teacher_temp(self.step - 1), self.latest)
            # whoever tells a run to stop waits half a minute, and k-NN may take longer
            if self.knn.is_due(self.step) and (is_last or not stopped):
                self.knn.evaluate(self.step, None if is_last else stop)
                stopped = stop.agreed()
            if self.monitor.is_due(self.step):
                self.batches.bad_images.report()
            if self.files.is_due(self.step) or stopped:
                with stop.save_watched(self.monitor.say):
                    self.save(needed=is_last or stopped)

    def training_step(self, micro_batches: list[dict], stop: StopRequest) -> Outcome:
        """Forward, backward, clip; update student, teacher and centers where loss and gradients are
        finite on every process.

        "rescaled": the gradients overflowed in float16, and the next step has a smaller loss scale.
        "broken off": `stop` leaves no time for the rest of the step and a save; everything that a
        checkpoint holds is as before the step.
        """
        settings = {name: float(values[self.step]) for name, values in self.schedules.items()}
        learning_rate = settings["learning_rate"]
        last_layer_rate = settings["last_layer_learning_rate"]
        apply_schedules(self.optimizer, learning_rate, last_layer_rate, settings["weight_decay"])
        torch.manual_seed(seed_of(self.seed, "step", self.step, self.accelerator.process_index))
        own_losses = self.accumulate_gradients(micro_batches, settings["teacher_temp"], stop)
        if own_losses is None:
            self.method.discard_centers()
            self.optimizer.zero_grad(set_to_none=True)
            return "broken off"
        losses = mean_over_processes(own_losses)
        self.scaler.unscale_(self.optimizer)
        norms = clip_per_module(dict(self.method.student.items()), self.max_grad_norm)
        outcome = self.outcome_of(losses["loss"], norms)
        self.update_weights(outcome, settings["ema_momentum"])
        if outcome == "taken":
            self.latest = losses | {f"{name}_grad_norm": norm for name, norm in norms.items()}
            self.monitor.step_done(self.step + 1, self.latest, settings | self.scaler.figures())
        else:
            self.tell_not_taken(outcome, own_losses["loss"], micro_batches)
        self.optimizer.zero_grad(set_to_none=True)
        return outcome

    def update_weights(self, outcome: Outcome, ema_momentum: float) -> None:
        """Move student, teacher and centers, where the step is taken."""
        if outcome == "taken":
            self.scaler.step(self.optimizer)
            self.method.update_teacher(ema_momentum)
            self.method.update_centers()
        else:
            self.method.discard_centers()
        self.scaler.update()

    def accumulate_gradients(
        self, micro_batches: list[dict], teacher_temp: float, stop: StopRequest
    ) -> dict[str, Tensor] | None:
        """Forward and backward of each micro-batch; the mean losses of this process, or None once
        `stop` breaks the step off. Gradients are averaged over the processes with the last one."""
        count = len(micro_batches)
        totals: dict[str, Tensor] = {}
        for number, batch in enumerate(micro_batches):
            if number and stop.breaks_off():
                return None
            is_last = number == count - 1
            with nullcontext() if is_last else self.accelerator.no_sync(self.model):
                losses = self.forward(batch, teacher_temp)
                self.scaler.scale(losses["loss"] / count).backward()
            for name, value in losses.items():
                totals[name] = totals.get(name, 0.0) + value.detach() / count
        return totals

    def forward(self, batch: dict, teacher_temp: float) -> dict[str, Tensor]:
        """The losses of one micro-batch. float16 is cast here; bfloat16 is by accelerate."""
        device_type = self.accelerator.device.type
        with torch.autocast(device_type, torch.float16, enabled=self.scaler.is_enabled()):
            return self.model(**self.on_device(batch), teacher_temp=teacher_temp)

    def on_device(self, batch: dict) -> dict:
        """The tensors of a batch that the method takes."""
        inputs = {}
        for name in METHOD_INPUTS:
            value = batch[name]
            if value is not None:
                value = value.to(device=self.accelerator.device, non_blocking=True)
            inputs[name] = value
        return inputs

    def outcome_of(self, loss: Tensor, norms: dict[str, Tensor]) -> Outcome:
        """What becomes of the step. It is the same on every process, for the loss is a mean over
        all of them, and so are the gradients."""
        if torch.stack([loss, *norms.values()]).isfinite().all():
            return "taken"
        return "rescaled" if self.scaler.can_fall(loss) else "skipped"

    def tell_not_taken(self, outcome: Outcome, own_loss: Tensor, micro_batches: list[dict]) -> None:
        """Say why the weights have not moved. own_loss: of this process alone."""
        if outcome == "rescaled":
            self.monitor.tell_rescaled(self.step + 1, self.scaler.figures(), self.scaler.get_scale())
            return
        ids: list[str] = []
        for batch in micro_batches:
            ids += batch["ids"]
        self.monitor.report_skipped(self.step + 1, own_loss, ids)

    def refuse_endless_skips(self, outcome: Outcome) -> None:
        """Raises UserError, with a checkpoint saved, after three skipped steps in a row."""
        if outcome == "taken":
            self.skipped_in_a_row = 0
        elif outcome == "skipped":
            self.skipped_in_a_row += 1
        if self.skipped_in_a_row == MAX_SKIPPED_IN_A_ROW:
            self.save(needed=True)
            raise UserError(
                f"loss or gradients were not finite for {self.skipped_in_a_row} steps in a row, the last is "
                f"step {self.step}; the weights saved are those before them. Lower learning_rate, or resume "
                "from a checkpoint with a smaller one"
            )

    def teacher_temp(self, step: int) -> float:
        """The temperature of the teacher's softmax in a step, counted from 0."""
        return float(self.schedules["teacher_temp"][step])

    def save(self, needed: bool) -> None:
        """Write a checkpoint and refresh the root of the run's folder from it. needed: the run ends
        where it cannot be written."""
        self.batches.bad_images.report()
        places = gather_objects(self.batches.places.state_dict())
        self.files.save(self.state_dict(places), self.knn.references, needed)

    def state_dict(self, places: list[dict | None]) -> dict:
        """What a checkpoint holds beside tensors. places: of the stream's readers in every
        process."""
        return {
            "step": self.step,
            "monitor": self.monitor.state_dict(),
            "bad_images": self.batches.bad_images.state_dict(),
            "stream": places,
            "health": self.health.watch.state_dict(),
            "knn": self.knn.accuracies,
            "loss_scaler": self.scaler.state_dict(),
            **self.course,
        }

    def load_state_dict(self, state: dict) -> None:
        """Go on from `state_dict`. The places in a stream are taken up before its reader is
        built."""
        self.health.watch.load_state_dict(state["health"])
        self.knn.accuracies = state["knn"]
        self.monitor.load_state_dict(state["monitor"])
        self.batches.bad_images.load_state_dict(state["bad_images"])
        self.scaler.load(state.get("loss_scaler"))

    def leave(self, stop: StopRequest) -> str:
        """The last words of a run that was told to stop and whose last step is saved."""
        line = (
            f"told to stop: step {self.step} of {self.max_steps} is saved; "
            f"{how_to_go_on(self.output_dir)}{stop.time_taken}"
        )
        self.monitor.say(line)
        self.close()
        return line

    def finish(self, seconds: float) -> None:
        """Publish the figures, and the encoder of a run that had no step left; say where it is.

        seconds: what the run has taken.
        """
        if self.run is not None:
            self.files.publish_newest(self.step, self.knn.references, self.knn.accuracies)
            figures = self.files.publish_figures(self.knn.references)
            self.monitor.say(
                f"done in {seconds / 60:.1f} min, peak memory {peak_memory_gib():.1f} GiB; "
                f'the encoder is {self.output_dir}: AutoModel.from_pretrained("{self.output_dir}"); '
                f"pictures in {figures}"
            )
            self.run.finish()
        self.close()

    def close(self) -> None:
        """Let go of the folder, and end the trackers."""
        if self.run is not None:
            self.run.close()
        self.accelerator.end_training()
