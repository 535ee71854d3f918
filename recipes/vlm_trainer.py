"""transformers' Trainer for fused models: a rate for every kind of module, loss at learnt positions, checkpoints that are whole or invisible."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Sampler
from tqdm import tqdm
from transformers import Trainer, TrainerCallback

from vision_core.checkpoints import remove_old_checkpoints, seal_folder
from vision_core.distributed import gather_objects, is_main_process
from vision_core.errors import UserError
from vision_core.run_folder import RunFolder
from vision_core.stopping import StopRequest

Rates = Sequence[tuple[re.Pattern[str], float]]
SAMPLER = re.compile(r"vision_query|vision_sampler")  # the aggregator's queries and cross-attention layers, everywhere
ENCODER = re.compile(r"vision_model\.encoders\.")


class VlmTrainer(Trainer):
    """Trainer with what fused models need.

    rates: (pattern, learning rate); the first pattern found in a parameter's name decides, and `args.learning_rate` holds for the others.
    sampler: the order of the training samples; by default the Trainer's, a new permutation for every epoch.
    run: on the main process, the folder that gets the metrics. keep: whole checkpoints that stay, None for all.
    """

    def __init__(
        self,
        *args: Any,
        rates: Rates = (),
        sampler: Sampler | None = None,
        run: RunFolder | None = None,
        keep: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.rates, self.sampler, self.run, self.keep = list(rates), sampler, run, keep

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """One group of parameters for each rate, decayed or not."""
        if self.optimizer is None:
            model = self.model if model is None else model
            decayed = set(self.get_decay_parameter_names(model))
            groups: dict[tuple[float, float], list[nn.Parameter]] = {}
            for name, parameter in model.named_parameters():
                if parameter.requires_grad:
                    rate = next((rate for pattern, rate in self.rates if pattern.search(name)), self.args.learning_rate)
                    groups.setdefault((rate, self.args.weight_decay if name in decayed else 0.0), []).append(parameter)
            optimizer_class, options = self.get_optimizer_cls_and_kwargs(self.args, model)
            self.optimizer = optimizer_class(
                [{"params": parameters, "lr": rate, "weight_decay": decay} for (rate, decay), parameters in groups.items()], **options
            )
        return self.optimizer

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """The model's loss, at learnt positions alone."""
        return super().compute_loss(model, {**inputs, "supervised_only": True}, *args, **kwargs)

    def prediction_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> tuple[torch.Tensor, None, None]:
        """The loss of a batch that is not trained on."""
        with torch.no_grad(), self.compute_loss_context_manager():
            return self.compute_loss(model, self._prepare_inputs(inputs)).detach().mean(), None, None

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """To metrics.jsonl too. Raises UserError, on all processes alike, for a loss that is no number."""
        super().log(logs, start_time)
        if self.run is not None:
            self.run.append_metrics({"step": self.state.global_step, **logs})
        if not math.isfinite(logs.get("loss", 0.0)):
            raise UserError(
                f"the loss is {logs['loss']} at step {self.state.global_step}; resume from the last checkpoint with a smaller learning rate, "
                "or without bf16"
            )

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler | None:
        return super()._get_train_sampler(train_dataset) if self.sampler is None else self.sampler

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """The Trainer's files; then, once all processes have written theirs, the manifest without which nothing is resumed."""
        super()._save_checkpoint(model, trial)
        gather_objects(None)
        if is_main_process():
            root, step = Path(self.args.output_dir), self.state.global_step
            seal_folder(root / f"checkpoint-{step}", step)
            remove_old_checkpoints(root, step, self.keep)


class StopWhenTold(TrainerCallback):
    """Save and leave after a step in which any process was told to stop."""

    def __init__(self, stop: StopRequest) -> None:
        self.stop, self.stopped = stop, False

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.stop.agreed():
            self.stopped = control.should_save = control.should_training_stop = True


class Progress(TrainerCallback):
    """A bar for the steps, and a line above it for what was measured; on the main process."""

    SHOWN = ("loss", "eval_loss", "learning_rate", "grad_norm")

    def __init__(self) -> None:
        self.bar: tqdm | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self.bar = tqdm(total=state.max_steps, initial=state.global_step, desc="training", unit="step", dynamic_ncols=True)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **kwargs: Any) -> None:
        measured = [f"{name.replace('_', ' ')} {logs[name]:.4g}" for name in self.SHOWN if name in logs]
        if self.bar is not None and measured:
            self.bar.write(f"step {state.global_step}: {', '.join(measured)}")

    def close(self) -> None:
        """Before anything else is said."""
        if self.bar is not None:
            self.bar.close()


class GroupedByLength(Sampler):
    """Samples of like length side by side, so that little is padded: the order of an epoch, a function of (seed, epoch).

    A permutation is cut into stretches of 50 batches; within a stretch samples are sorted by length and its batches shuffled.
    lengths: of the samples, in any unit. batch: samples of one optimizer step over all processes.
    """

    STRETCH = 50

    def __init__(self, lengths: Sequence[int], batch: int, generator: Callable[[int], Any]) -> None:
        self.lengths, self.batch, self.generator, self.epoch = list(lengths), batch, generator, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Any:
        rng = self.generator(self.epoch)
        order = rng.permutation(len(self.lengths)).tolist()
        size = self.STRETCH * self.batch
        for start in range(0, len(order), size):
            stretch = sorted(order[start : start + size], key=lambda sample: self.lengths[sample])
            batches = [stretch[first : first + self.batch] for first in range(0, len(stretch), self.batch)]
            whole, rest = [each for each in batches if len(each) == self.batch], [each for each in batches if len(each) < self.batch]
            for number in rng.permutation(len(whole)).tolist():
                yield from whole[number]
            for each in rest:  # a batch that is not full would shift those behind it
                yield from each
