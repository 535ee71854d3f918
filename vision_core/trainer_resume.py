"""What a checkpoint of `run_trainer.RunTrainer` says besides what the Trainer writes, and what of it must be so when a run goes on from it.

Everything here is looked at before the run's folder changes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vision_core.checkpoint_fit import (
    cure_of,
    misfit_of_names,
    misfit_of_shapes,
    refuse_misfit,
    refuse_other_start,
    shapes_of_weights,
    state_of_start,
)
from vision_core.data_facts import ChangedData, DataFacts, facts_as_json, tell_changed_data
from vision_core.distributed import print_once
from vision_core.errors import UserError, first_line
from vision_core.folder_checks import FolderAhead
from vision_core.run_folder import RunFolder

FACTS = "resume_facts.json"
OPTIMIZER, SCHEDULER = "optimizer.pt", "scheduler.pt"  # as the Trainer calls them
Changes = Mapping[str, tuple[Any, Any]]


def write_facts(folder: Path, facts: Mapping[str, Any]) -> None:
    """Beside the Trainer's own files, before the checkpoint is sealed."""
    (folder / FACTS).write_text(json.dumps(facts, indent=1), encoding="utf-8")


def read_facts(checkpoint: str | Path) -> dict[str, Any]:
    """{} for a checkpoint of an older version."""
    file = Path(checkpoint) / FACTS
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def names_of_states(model: nn.Module, optimizer: Any) -> list[str]:
    """The names of the parameters in the order in which `optimizer.state_dict()` numbers them; [] where it holds other tensors, as ZeRO's does."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return [names[id(parameter)] for parameter in held] if all(id(parameter) in names for parameter in held) else []


def whole_shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Of all that `state_dict` has, once each where weights are tied; whole also where ZeRO-3 has left this process empty ones."""
    tied = getattr(model, "all_tied_weights_keys", {})
    parameters = {name: getattr(parameter, "ds_shape", parameter.shape) for name, parameter in model.named_parameters()}
    everything = {name: tensor.shape for name, tensor in model.state_dict().items()} | parameters
    return {name: tuple(shape) for name, shape in everything.items() if name not in tied}


def refuse_other_weights(checkpoint: Path, model: nn.Module, changes: Changes) -> None:
    """Raises UserError for a checkpoint whose weights are of other shapes, or an adapter of another kind than `model` has."""
    adapter = checkpoint / "adapter_config.json"
    ours = getattr(model, "peft_config", {}).get("default")
    if adapter.is_file() != (ours is not None):
        holds, has = ("an adapter of LoRA", "none") if adapter.is_file() else ("a whole model", "an adapter of LoRA")
        refuse_misfit(checkpoint, f"it holds {holds} and this run's model has {has}", changes)
    if ours is not None:
        theirs = json.loads(adapter.read_text(encoding="utf-8"))
        wrong = [f"{name} of LoRA is {theirs[name]} in the checkpoint and {getattr(ours, name)} in this run's model"
                 for name in ("r", "lora_alpha") if theirs.get(name) != getattr(ours, name)]  # fmt: skip
        refuse_misfit(checkpoint, next(iter(wrong), ""), changes)
        return
    saved = shapes_of_weights(checkpoint)
    if saved is not None:
        own = whole_shapes(model)
        common = saved.keys() & own.keys()
        refuse_misfit(checkpoint, misfit_of_shapes({name: saved[name] for name in common}, {name: own[name] for name in common}), changes)


def load_optimizer(checkpoint: Path, optimizer: torch.optim.Optimizer, model: nn.Module, names: Sequence[str], changes: Changes) -> None:
    """The states of `checkpoint`, each for the parameter of its name, under this run's groups and their options.

    names: of the checkpoint's states in the order of their numbers, [] for an older checkpoint, whose order must be this run's. The library's own
    loader goes by numbers alone, so that with other groups the states of one parameter would be another's, and takes weight decay and betas from
    the file. Raises UserError before anything is assigned.
    """
    saved = torch.load(checkpoint / OPTIMIZER, map_location="cpu", weights_only=True)
    numbers = [number for group in saved["param_groups"] for number in group["params"]]
    own_names = names_of_states(model, optimizer)
    of_file = list(names) or own_names
    if len(of_file) != len(numbers):
        misfit = f"its optimizer has states of {len(numbers)} parameters, and {len(of_file)} train"
        refuse_misfit(checkpoint, misfit, changes)
    by_name = {name: saved["state"].get(number) for name, number in zip(of_file, numbers, strict=True)}
    if wrong := misfit_of_names(by_name, own_names):
        raise UserError(f"{checkpoint} was trained in other parts: {wrong}; {cure_of(checkpoint, changes)}")
    own = optimizer.state_dict()
    held = dict(model.named_parameters())
    states = {number: by_name[name] for number, name in enumerate(own_names) if by_name[name] is not None}
    for number, state in states.items():
        name = own_names[number]
        moments = {f"{key} of {name}": tuple(value.shape) for key, value in state.items() if torch.is_tensor(value) and value.ndim}
        refuse_misfit(checkpoint, misfit_of_shapes(moments, dict.fromkeys(moments, tuple(held[name].shape))), changes)
    optimizer.load_state_dict({"state": states, "param_groups": own["param_groups"]})


def take_over_rates(checkpoint: Path, optimizer: torch.optim.Optimizer, model: nn.Module, schedule: str, changes: Changes) -> None:
    """The learning rates of `checkpoint`, for a schedule that goes by the loss: what it has made of them stands in the optimizer alone.

    Raises UserError where the run was given another rate, which such a schedule would not follow.
    """
    if "learning_rate" in changes:
        old, new = changes["learning_rate"]
        raise UserError(f"--learning_rate was {old} and is {new}: --lr_scheduler_type {schedule} goes on from the checkpoint's; give {old}")
    facts, saved = read_facts(checkpoint), torch.load(checkpoint / OPTIMIZER, map_location="cpu", weights_only=True)
    of_file = facts.get("optimizer") or names_of_states(model, optimizer)
    rate_of = {of_file[number]: group["lr"] for group in saved["param_groups"] for number in group["params"]}
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for group in optimizer.param_groups:
        for parameter in group["params"][:1]:
            group["lr"] = rate_of[names[id(parameter)]]


def changed_course(facts: Mapping[str, Any], seed: int, global_batch: int) -> list[str]:
    """A line for each of these that makes a run that goes on differ from an uninterrupted one."""
    pairs = (("seed", seed), ("samples of a step", global_batch))
    return [
        f"note            {name}: {facts[name]} before and {value} now, so other samples come from here on than without the stop"
        for name, value in pairs
        if facts.get(name, value) != value
    ]


def load_scheduler(checkpoint: Path, scheduler: Any, groups: int) -> None:
    """The scheduler's step. Its state has an entry for each group of the optimizer that was saved; this run's may be `groups` others."""
    state = torch.load(checkpoint / SCHEDULER, map_location="cpu", weights_only=True)
    if "lr_lambdas" in state:
        state["lr_lambdas"] = [None] * groups
    scheduler.load_state_dict(state)


def look_at_start(
    run: RunFolder | FolderAhead | None, data: Sequence[DataFacts], init_from: str | None = None, changed_data: ChangedData = "note"
) -> dict[str, Any]:
    """Facts of the run for its checkpoints, held against those of the checkpoint from which it goes on. Prints what has changed.

    run: on the main process; of a dry run, what it knows of its folder. Raises UserError where data has changed that
    must not, or the run is told to start from something else than it did.
    """
    if run is None:
        return {}
    facts = {"data": facts_as_json(data), "init_from": state_of_start(init_from)}
    if run.checkpoint is not None:
        before = read_facts(run.checkpoint)
        refuse_other_start(init_from, run.changes, before.get("init_from", ""))
        for line in tell_changed_data(str(run.checkpoint), before.get("data"), data, changed_data):
            print_once([line])
    return facts


@contextmanager
def taken_up(checkpoint: str | None, changes: Changes) -> Iterator[None]:
    """Inside, a checkpoint is loaded by libraries that raise what they like for one that does not fit; it becomes a UserError of one line."""
    try:
        yield
    except UserError:
        raise
    except (AttributeError, IndexError, KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
        if checkpoint is None:
            raise
        raise UserError(f"{checkpoint} cannot be taken up ({first_line(error)[:150]}); {cure_of(checkpoint, changes)}") from None
