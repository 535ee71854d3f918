"""Writes and reads what a checkpoint of a DINOv2 run holds: safetensors and JSON only."""

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pretrain.self_distillation import SelfDistillation
from vision_core.errors import UserError
from vision_core.runs.checkpoint_fit import (
    Shapes,
    cure_of,
    misfit_of_configs,
    misfit_of_shapes,
    refuse_fewer_steps,
    refuse_other_start,
    shapes_in,
)
from vision_core.runs.checkpoints import checkpoint_step

Changes = Mapping[str, tuple[Any, Any]]  # options that differ from before: name -> (old, new)

NO_CHANGES: Changes = MappingProxyType({})
MOMENTS = ("exp_avg", "exp_avg_sq")

# The root of a run's folder holds copies of these from its newest checkpoint; weights last, so that
# a reader never sees new weights with an old config.
PUBLISHED_FILES = ["config.json", "preprocessor_config.json", "heads.safetensors", "model.safetensors"]


def save_training_state(
    folder: Path, method: SelfDistillation, optimizer: torch.optim.Optimizer, state: dict
) -> None:
    """Write into `folder`:

    config.json, model.safetensors   the teacher's backbone, as `AutoModel` loads it
    heads.safetensors                the teacher's heads and the centers
    student.safetensors              the student: backbone and heads
    optimizer.safetensors            AdamW's moments by parameter name
    training_state.json              `state`: plain numbers
    """
    method.teacher["backbone"].save_pretrained(folder)
    save_file(_contiguous(heads_and_centers(method)), folder / "heads.safetensors")
    save_file(_contiguous(method.student.state_dict()), folder / "student.safetensors")
    save_file(_contiguous(optimizer_tensors(method, optimizer)), folder / "optimizer.safetensors")
    (folder / "training_state.json").write_text(json.dumps(state, indent=1))


def load_training_state(
    folder: Path,
    method: SelfDistillation,
    optimizer: torch.optim.Optimizer,
    changes: Changes = NO_CHANGES,
) -> dict:
    """Bring `method` and `optimizer` to the state in `folder`; returns the JSON part.

    changes: the options that differ from those of the run that saved it. Raises `UserError` where
    it is another model's; then nothing has been assigned.
    """
    try:
        misfit = first_misfit(folder, method)
        if not misfit:
            return _load(folder, method, optimizer)
    except Exception as error:  # a file that is something else raises whatever its reader does
        misfit = (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()
    raise UserError(f"{folder} does not fit this run's model: {misfit}; {cure_of(folder, changes)}")


def resume_from(
    folder: Path,
    init_from: str | None,
    max_steps: int,
    method: SelfDistillation,
    optimizer: torch.optim.Optimizer,
    changes: Changes = NO_CHANGES,
) -> dict:
    """Load a state as `load_training_state` does, where the run can go on from there. A dry run asks
    the same.

    Raises UserError for another `init_from` than before, for a `max_steps` below the checkpoint's
    step, and for another model.
    """
    refuse_other_start(init_from, changes, start_of(folder))
    refuse_fewer_steps(folder, checkpoint_step(folder), max_steps)
    return load_training_state(folder, method, optimizer, changes)


def start_of(folder: Path) -> str:
    """`state_of_start` of the weights that a run began from, as its checkpoint has it; "" where it
    says nothing, as those of older versions.
    """
    with suppress(
        OSError, ValueError, AttributeError
    ):  # `load_training_state` says what is wrong with the file
        return json.loads((folder / "training_state.json").read_text()).get("init_from", "")
    return ""


def first_misfit(folder: Path, method: SelfDistillation) -> str:
    """In what the model in `folder` differs from `method`, or "". Reads headers and a config
    alone."""
    student = shapes_in(folder / "student.safetensors")
    heads = shapes_in(folder / "heads.safetensors")
    moments = shapes_in(folder / "optimizer.safetensors")
    own_config = method.teacher["backbone"].config
    config = type(own_config).from_pretrained(folder)
    return (
        misfit_of_shapes(student, shapes_of(method.student.state_dict()))
        or misfit_of_shapes(heads, shapes_of(heads_and_centers(method)))
        or misfit_of_optimizer(moments, shapes_of(dict(method.student.named_parameters())))
        or misfit_of_configs(config.to_dict(), own_config.to_dict())
    )


def misfit_of_optimizer(saved: Shapes, parameters: Shapes) -> str:
    """In what AdamW's moments differ from these parameters, or ""."""
    saved_moments = {name: shape for name, shape in saved.items() if not name.endswith("/step")}
    # a parameter that has had no gradient yet has no state, and one that has some has all of it
    with_state = {name.rpartition("/")[0] for name in saved}
    own_moments: Shapes = {}
    for name, shape in parameters.items():
        if name in with_state:
            own_moments |= {f"{name}/{moment}": shape for moment in MOMENTS}
    return misfit_of_shapes(saved_moments, own_moments)


def _load(folder: Path, method: SelfDistillation, optimizer: torch.optim.Optimizer) -> dict:
    """Assign what is known to fit. The library reads the teacher, whose file has names of its
    own."""
    state = json.loads((folder / "training_state.json").read_text())
    teacher = type(method.teacher["backbone"]).from_pretrained(folder)
    method.teacher["backbone"].load_state_dict(teacher.state_dict())
    load_heads_and_centers(method, load_file(folder / "heads.safetensors"))
    method.student.load_state_dict(load_file(folder / "student.safetensors"))
    load_optimizer_tensors(method, optimizer, load_file(folder / "optimizer.safetensors"))
    return state


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor, by its name."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def course(seed: int, global_batch: int, pixel_options: str) -> dict[str, Any]:
    """What a checkpoint keeps for `changed_course`."""
    return {
        "seed": seed,
        "pixel_options": pixel_options,
        "global_batch": global_batch,
        "cpu_threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def changed_course(state: dict, seed: int, global_batch: int, pixel_options: str) -> list[str]:
    """What makes a run that resumes from `state` differ from an uninterrupted one, a line each.

    global_batch: images of a step, over all processes. pixel_options: how images are read, as text.
    """
    before = state.get("pixel_options", pixel_options)  # older checkpoints do not say
    lines = []
    if before != pixel_options:
        was = before or "no options"
        lines.append(
            f"note            images were read with {was} and are read with {pixel_options or 'none'}: other pixels"
        )
    other_images = "other images and crops from here on than without the stop"
    other_bits = "the same course, but not to the last bit"
    for name, value, consequence in (
        ("seed", seed, other_images),
        ("global_batch", global_batch, other_images),
        ("cpu_threads", torch.get_num_threads(), other_bits),
        ("torch", torch.__version__, other_bits),
    ):
        if state[name] != value:
            lines.append(f"note            {name} was {state[name]} and is {value}: {consequence}")
    return lines


def heads_and_centers(method: SelfDistillation) -> dict[str, Tensor]:
    """The teacher's heads as `dino_head.*`, `ibot_head.*`, and the centers as `dino_centering.*`,
    `ibot_centering.*`."""
    tensors: dict[str, Tensor] = {}
    for name, value in method.teacher.state_dict().items():
        if not name.startswith("backbone."):
            tensors[name] = value
    for centering in ("dino_centering", "ibot_centering"):
        for key, value in getattr(method, centering).state_dict().items():
            tensors[f"{centering}.{key}"] = value
    return tensors


def load_heads_and_centers(method: SelfDistillation, tensors: dict[str, Tensor]) -> None:
    """The inverse of `heads_and_centers`; every name must be there."""
    own = heads_and_centers(method)
    if shapes_of(own) != shapes_of(tensors):
        raise RuntimeError(
            f"heads.safetensors has other tensors than the heads: {sorted(own.keys() ^ tensors.keys())[:3]}"
        )
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(tensors[name])


def optimizer_tensors(method: SelfDistillation, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """AdamW's state as `<parameter name>/<step, exp_avg or exp_avg_sq>`."""
    names = {parameter: name for name, parameter in method.student.named_parameters()}
    tensors: dict[str, Tensor] = {}
    for parameter, entry in optimizer.state.items():
        for key, value in entry.items():
            tensors[f"{names[parameter]}/{key}"] = value.reshape(-1) if value.ndim == 0 else value
    return tensors


def load_optimizer_tensors(
    method: SelfDistillation, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]
) -> None:
    """The inverse of `optimizer_tensors`."""
    parameters = dict(method.student.named_parameters())
    for name, value in tensors.items():
        parameter_name, key = name.rsplit("/", 1)
        parameter = parameters[parameter_name]
        value = value.reshape(()) if key == "step" else value.to(parameter.device)
        optimizer.state[parameter][key] = value


def _contiguous(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
