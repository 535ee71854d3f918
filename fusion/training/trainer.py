"""transformers' Trainer for fused models: a learning rate for every kind of module, and the loss at
the learnt positions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Sampler

from fusion.stub import write_stub
from fusion.training.plan import Rates
from vision_core.processes.distributed import is_main_process
from vision_core.trainer.run_trainer import RunTrainer


class VlmTrainer(RunTrainer):
    """RunTrainer with what fused models need.

    own_rates: (pattern, learning rate); the first pattern found in a parameter's name decides, and
    `args.learning_rate` holds for the others.
    """

    def __init__(self, *args: Any, own_rates: Rates = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.own_rates = list(own_rates)

    def rate_of(self, name: str) -> float:
        """The highest learning rate of the parameter of this name."""
        for pattern, rate in self.own_rates:
            if pattern.search(name):
                return rate
        return self.args.learning_rate

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The optimizer, with one group of parameters for each learning rate and weight decay."""
        if self.optimizer is None:
            model = self.model if model is None else model
            optimizer_class, options = self.get_optimizer_cls_and_kwargs(self.args, model)
            self.optimizer = optimizer_class(self.parameter_groups(model), **options)
        return self.optimizer

    def parameter_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """The trained parameters, as an optimizer takes them: a group for each pair of learning rate
        and weight decay."""
        decayed = set(self.get_decay_parameter_names(model))
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                decay = self.args.weight_decay if name in decayed else 0.0
                groups.setdefault((self.rate_of(name), decay), []).append(parameter)
        return [
            {"params": parameters, "lr": rate, "weight_decay": decay}
            for (rate, decay), parameters in groups.items()
        ]

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """The model's loss. Logits are computed at the learnt positions alone."""
        return super().compute_loss(model, {**inputs, "supervised_only": True}, *args, **kwargs)

    def write_model(self, folder: str, state_dict: dict[str, torch.Tensor] | None) -> None:
        """The model's files, and the stub from which a process that imports only transformers hears
        what is missing. An adapter is not a model, and gets none."""
        super().write_model(folder, state_dict)
        if is_main_process() and (Path(folder) / "config.json").is_file():
            write_stub(Path(folder))


class GroupedByLength(Sampler):
    """An order of an epoch, a function of (seed, epoch), that puts samples of similar length side by
    side, so that little is padded.

    A permutation is divided into stretches of 50 batches. Within a stretch samples are sorted by
    length, and its batches are shuffled.

    lengths: of the samples, in any unit. batch: samples of one optimizer step over all processes.
    generator: numpy's, of an epoch.
    """

    STRETCH = 50

    def __init__(self, lengths: Sequence[int], batch: int, generator: Callable[[int], Any]) -> None:
        self.lengths = list(lengths)
        self.batch = batch
        self.generator = generator
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """The Trainer calls it before every epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        rng = self.generator(self.epoch)
        order = rng.permutation(len(self.lengths)).tolist()
        size = self.STRETCH * self.batch
        for start in range(0, len(order), size):
            full, partial = self._batches_of(order[start : start + size])
            for number in rng.permutation(len(full)).tolist():
                yield from full[number]
            yield from partial  # last, for a batch that is not full would shift those behind it

    def _batches_of(self, stretch: list[int]) -> tuple[list[list[int]], list[int]]:
        """The full batches of a stretch, sorted by length, and the samples that make no full one."""
        by_length = sorted(stretch, key=self.lengths.__getitem__)
        in_full_batches = len(by_length) - len(by_length) % self.batch
        starts = range(0, in_full_batches, self.batch)
        full = [by_length[start : start + self.batch] for start in starts]
        return full, by_length[in_full_batches:]
