"""transformers' Trainer for fused models: a rate for every kind of module, loss at learnt
positions."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Sampler

from fusion.stub import write_stub
from vision_core.processes.distributed import is_main_process
from vision_core.trainer.run_trainer import RunTrainer

Rates = Sequence[tuple[re.Pattern[str], float]]
SAMPLER = re.compile(
    r"vision_query|vision_sampler"
)  # the aggregator's queries and cross-attention layers, everywhere
ENCODER = re.compile(r"vision_model\.encoders\.")


@dataclass(frozen=True)
class Plan:
    """What of a model trains, and how fast. model: its `requires_grad` say what. learning_rate: of
    all that no pattern of `rates` is found in."""

    model: nn.Module
    learning_rate: float
    rates: Rates = ()


class VlmTrainer(RunTrainer):
    """RunTrainer with what fused models need.

    rates: (pattern, learning rate); the first pattern found in a parameter's name decides, and
    `args.learning_rate` holds for the others.
    """

    def __init__(self, *args: Any, rates: Rates = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.rates = list(rates)

    def rate_of(self, name: str) -> float:
        """By the first pattern that is found in the name."""
        return next((rate for pattern, rate in self.rates if pattern.search(name)), self.args.learning_rate)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """One group of parameters for each rate, decayed or not."""
        if self.optimizer is None:
            model = self.model if model is None else model
            decayed = set(self.get_decay_parameter_names(model))
            groups: dict[tuple[float, float], list[nn.Parameter]] = {}
            for name, parameter in model.named_parameters():
                if parameter.requires_grad:
                    groups.setdefault(
                        (self.rate_of(name), self.args.weight_decay if name in decayed else 0.0), []
                    ).append(parameter)
            optimizer_class, options = self.get_optimizer_cls_and_kwargs(self.args, model)
            self.optimizer = optimizer_class(
                [
                    {"params": parameters, "lr": rate, "weight_decay": decay}
                    for (rate, decay), parameters in groups.items()
                ],
                **options,
            )
        return self.optimizer

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """The model's loss, at learnt positions alone."""
        return super().compute_loss(model, {**inputs, "supervised_only": True}, *args, **kwargs)

    def write_model(self, folder: str, state_dict: dict[str, torch.Tensor] | None) -> None:
        """With the stub, by which processes that import only transformers hear what is missing; an
        adapter is no whole model, and has none."""
        super().write_model(folder, state_dict)
        if is_main_process() and (Path(folder) / "config.json").is_file():
            write_stub(Path(folder))


class GroupedByLength(Sampler):
    """Samples of like length side by side, so that little is padded: the order of an epoch, a
    function of (seed, epoch).

    A permutation is cut into stretches of 50 batches; within a stretch samples are sorted by length
    and its batches shuffled.
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
            whole, rest = (
                [each for each in batches if len(each) == self.batch],
                [each for each in batches if len(each) < self.batch],
            )
            for number in rng.permutation(len(whole)).tolist():
                yield from whole[number]
            for each in rest:  # a batch that is not full would shift those behind it
                yield from each
