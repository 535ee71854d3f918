"""How a run of `RunTrainer` goes on from a checkpoint: what must agree, and how its states return.

A checkpoint holds what the Trainer writes and the facts of `resume_facts.json`. Everything here is
compared before the run's folder changes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vision_core.errors import UserError, first_line
from vision_core.processes.distributed import print_once
from vision_core.runs.checkpoint_fit import (
    cure_of,
    misfit_of_names,
    misfit_of_shapes,
    refuse_misfit,
    refuse_other_start,
    shapes_of_weights,
    state_of_start,
)
from vision_core.runs.data_facts import ChangedData, DataFacts, facts_as_json, tell_changed_data
from vision_core.runs.folder_checks import FolderAhead
from vision_core.runs.run_folder import RunFolder

FACTS = "resume_facts.json"
# as the Trainer calls them
OPTIMIZER = "optimizer.pt"
SCHEDULER = "scheduler.pt"
Changes = Mapping[str, tuple[Any, Any]]


def write_facts(folder: Path, facts: Mapping[str, Any]) -> None:
    """Write the facts beside the Trainer's own files, before the checkpoint is sealed."""
    (folder / FACTS).write_text(json.dumps(facts, indent=1), encoding="utf-8")


def read_facts(checkpoint: str | Path) -> dict[str, Any]:
    """Read the facts of a checkpoint. A checkpoint of an older version has none and gives {}."""
    file = Path(checkpoint) / FACTS
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def names_of_states(model: nn.Module, optimizer: Any) -> list[str]:
    """The names of the parameters in the order in which `optimizer.state_dict()` numbers them.

    The list is empty where the optimizer holds other tensors than the parameters, as ZeRO's does.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = []
    for group in optimizer.param_groups:
        found += [names.get(id(parameter)) for parameter in group["params"]]
    return [] if None in found else found


def whole_shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of `state_dict`; tied weights come once.

    Under ZeRO-3 a process holds empty parameters, whose full shape DeepSpeed keeps beside them.
    """
    tied = getattr(model, "all_tied_weights_keys", {})
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        shapes[name] = getattr(parameter, "ds_shape", parameter.shape)
    return {name: tuple(shape) for name, shape in shapes.items() if name not in tied}


def refuse_other_weights(checkpoint: Path, model: nn.Module, changes: Changes) -> None:
    """Raise UserError for a checkpoint whose weights have other shapes than those of `model`, or
    whose LoRA adapter differs from the model's."""
    adapter = checkpoint / "adapter_config.json"
    own_adapter = getattr(model, "peft_config", {}).get("default")
    if adapter.is_file() and own_adapter is None:
        refuse_misfit(checkpoint, "it holds an adapter of LoRA and this run's model has none", changes)
    if own_adapter is not None:
        if not adapter.is_file():
            misfit = "it holds a whole model and this run's model has an adapter of LoRA"
            refuse_misfit(checkpoint, misfit, changes)
        refuse_misfit(checkpoint, misfit_of_adapters(adapter, own_adapter), changes)
        return
    saved = shapes_of_weights(checkpoint)
    if saved is None:
        return
    own = whole_shapes(model)
    common = saved.keys() & own.keys()
    saved_common = {name: saved[name] for name in common}
    own_common = {name: own[name] for name in common}
    refuse_misfit(checkpoint, misfit_of_shapes(saved_common, own_common), changes)


def misfit_of_adapters(config_file: Path, own_adapter: Any) -> str:
    """The first setting of LoRA in which a checkpoint differs from the run, in words, or ""."""
    saved = json.loads(config_file.read_text(encoding="utf-8"))
    for name in ("r", "lora_alpha"):
        here = getattr(own_adapter, name)
        if saved.get(name) != here:
            return f"{name} of LoRA is {saved[name]} in the checkpoint and {here} in this run's model"
    return ""


def load_optimizer(
    checkpoint: Path,
    optimizer: torch.optim.Optimizer,
    model: nn.Module,
    names: Sequence[str],
    changes: Changes,
) -> None:
    """Load the optimizer's states by the names of the parameters, under this run's groups and
    their options.

    torch's own loader goes by numbers: with other groups one parameter would get the state of
    another, and weight decay and betas would come from the file.

    names: the parameters of the checkpoint's states in the order of their numbers; [] for an older
    checkpoint, whose order must be this run's. Raises UserError before anything is assigned.
    """
    saved = torch.load(checkpoint / OPTIMIZER, map_location="cpu", weights_only=True)
    numbers = numbers_of(saved)
    own_names = names_of_states(model, optimizer)
    saved_names = list(names) or own_names
    if len(saved_names) != len(numbers):
        misfit = f"its optimizer has states of {len(numbers)} parameters, and {len(saved_names)} train"
        refuse_misfit(checkpoint, misfit, changes)
    by_name = {}
    for name, number in zip(saved_names, numbers, strict=True):
        by_name[name] = saved["state"].get(number)
    misfit = misfit_of_names(by_name, own_names)
    if misfit:
        raise UserError(f"{checkpoint} was trained in other parts: {misfit}; {cure_of(checkpoint, changes)}")
    refuse_other_moments(checkpoint, by_name, model, changes)
    states = {number: by_name[name] for number, name in enumerate(own_names) if by_name[name] is not None}
    own_groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": states, "param_groups": own_groups})


def numbers_of(saved: Mapping[str, Any]) -> list[int]:
    """The numbers by which the state of an optimizer names its parameters, in their order."""
    numbers = []
    for group in saved["param_groups"]:
        numbers += group["params"]
    return numbers


def refuse_other_moments(
    checkpoint: Path, states: Mapping[str, Mapping[str, Any] | None], model: nn.Module, changes: Changes
) -> None:
    """Raise UserError for a moment of another shape than its parameter. states: by parameter."""
    parameters = dict(model.named_parameters())
    for name, state in states.items():
        wanted = tuple(parameters[name].shape)
        for key, value in (state or {}).items():
            if torch.is_tensor(value) and value.ndim:
                moment = f"{key} of {name}"
                misfit = misfit_of_shapes({moment: tuple(value.shape)}, {moment: wanted})
                refuse_misfit(checkpoint, misfit, changes)


def take_over_rates(
    checkpoint: Path, optimizer: torch.optim.Optimizer, model: nn.Module, schedule: str, changes: Changes
) -> None:
    """Take the learning rates from `checkpoint`, for a schedule that follows the loss: the rates
    that it has reached are nowhere but in the optimizer's state.

    Raises UserError where the run was given another rate, which such a schedule would ignore.
    """
    if "learning_rate" in changes:
        old, new = changes["learning_rate"]
        raise UserError(
            f"--learning_rate was {old} and is {new}: --lr_scheduler_type {schedule} goes on from the "
            f"checkpoint's; give {old}"
        )
    facts = read_facts(checkpoint)
    saved = torch.load(checkpoint / OPTIMIZER, map_location="cpu", weights_only=True)
    saved_names = facts.get("optimizer") or names_of_states(model, optimizer)
    rate_of = {}
    for group in saved["param_groups"]:
        for number in group["params"]:
            rate_of[saved_names[number]] = group["lr"]
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for group in optimizer.param_groups:
        for parameter in group["params"][:1]:
            group["lr"] = rate_of[names[id(parameter)]]


def changed_course(facts: Mapping[str, Any], seed: int, global_batch: int) -> list[str]:
    """A line for each setting by which the resumed run differs from an uninterrupted one."""
    lines = []
    for name, value in (("seed", seed), ("samples of a step", global_batch)):
        before = facts.get(name, value)
        if before != value:
            consequence = "so other samples come from here on than without the stop"
            lines.append(f"note            {name}: {before} before and {value} now, {consequence}")
    return lines


def load_scheduler(checkpoint: Path, scheduler: Any, groups: int) -> None:
    """Load the scheduler's step. A saved state has an entry for each group of its optimizer; this
    run may have another number of `groups`."""
    state = torch.load(checkpoint / SCHEDULER, map_location="cpu", weights_only=True)
    if "lr_lambdas" in state:
        state["lr_lambdas"] = [None] * groups
    scheduler.load_state_dict(state)


def look_at_start(
    run: RunFolder | FolderAhead | None,
    data: Sequence[DataFacts],
    init_from: str | None = None,
    changed_data: ChangedData = "note",
) -> dict[str, Any]:
    """Gather the facts of a run for its checkpoints, and compare them with those of the checkpoint
    that it resumes. Prints what has changed.

    run: the run on the main process, None on the others; of a dry run, what it knows of its folder.
    Raises UserError where data has changed that must not change, and where the run is told to start
    from other weights than it did.
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
    """Turn what libraries raise for a checkpoint that does not fit into a UserError of one line."""
    try:
        yield
    except UserError:
        raise
    except (AttributeError, IndexError, KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
        if checkpoint is None:
            raise
        raise UserError(
            f"{checkpoint} cannot be taken up ({first_line(error)[:150]}); {cure_of(checkpoint, changes)}"
        ) from None
