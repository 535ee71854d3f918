"""Whether a checkpoint is of the model that a run has, found out from headers and configs before anything is loaded."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open

from vision_core.errors import UserError
from vision_core.folder_checks import ABSENT

Shapes = Mapping[str, tuple[int, ...]]
# how a new model begins and how it is trained; the library that wrote the file; what is of no weight for a model that is loaded
NOT_THE_MODEL = frozenset(
    {"architectures", "drop_path_rate", "dtype", "id2label", "initializer_factor", "initializer_range", "label2id", "layerscale_value",
     "mask_ratio", "torch_dtype", "transformers_version", "use_cache", "_name_or_path"}
)  # fmt: skip
PTH = "dinov2_pth:"  # in front of a file's name, as `--init_from` of dinov2 takes it
SAMPLES, SAMPLE_BYTES = 64, 2**16  # of each file of weights: all of a small one, and enough of a large one to tell it from another
MOST_OF_OPTIONS = 80  # characters, of a line that says the model's difference and the cure too


def shapes_in(file: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of a safetensors file's tensors, from its header. Raises what `safetensors` does for a file that is none."""
    with safe_open(file, "pt") as opened:
        return {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118, it is no mapping


def shapes_of_weights(folder: Path) -> dict[str, tuple[int, ...]] | None:
    """Those of the model in a folder as transformers writes it, in one file or in several; None where there is none."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        files = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    else:
        files = ["model.safetensors"] if (folder / "model.safetensors").is_file() else []
    return {name: shape for file in files for name, shape in shapes_in(folder / file).items()} or None


def misfit_of_shapes(saved: Shapes, own: Shapes) -> str:
    """The first tensor in which a checkpoint differs from the run's model, in words; "" where there is none."""
    for name in sorted(saved.keys() & own.keys()):
        if tuple(saved[name]) != tuple(own[name]):
            return f"{name} is {list(saved[name])} in the checkpoint and {list(own[name])} in this run's model"
    return misfit_of_names(saved, own)


def misfit_of_names(saved: Iterable[str], own: Iterable[str]) -> str:
    """How many names one side has alone, and the first; "" where they are the same."""
    for lacking, having, names in (
        ("checkpoint lacks", "run's model has", sorted(set(own) - set(saved))),
        ("run's model lacks", "checkpoint has", sorted(set(saved) - set(own))),
    ):
        if names:
            return f"the {lacking} {len(names)} tensors that the {having}, first {names[0]}"
    return ""


def misfit_of_configs(saved: Mapping[str, Any], own: Mapping[str, Any]) -> str:
    """The first value by which two configs are different models, in words; "" where they are the same one.

    The number of attention heads, say, is in no shape. How a new model would begin does not count.
    """
    theirs, ours = _flat(saved), _flat(own)
    for name in sorted(theirs.keys() & ours.keys()):
        if name.rpartition(".")[2] not in NOT_THE_MODEL and theirs[name] != ours[name]:
            return f"{name} is {theirs[name]} in the checkpoint and {ours[name]} in this run's model"
    return ""


def refuse_misfit(checkpoint: Path | str, misfit: str, changes: Mapping[str, tuple[Any, Any]]) -> None:
    """Raises UserError where `misfit` says something. changes: the options that differ from the run's config.yaml, name -> (old, new)."""
    if misfit:
        raise UserError(f"{checkpoint} does not fit this run's model: {misfit}; {cure_of(checkpoint, changes)}")


def cure_of(checkpoint: Path | str, changes: Mapping[str, tuple[Any, Any]]) -> str:
    """What brings a run back to its checkpoint."""
    if not changes:
        return "start a new run with another --output_dir"
    # the shortest first: a number makes another model more often than a path or a list does, and a line holds few of those
    listed = sorted((f"--{name} was {old} and is {new}" for name, (old, new) in changes.items()), key=len)
    told = [each for number, each in enumerate(listed) if not number or len(", ".join(listed[: number + 1])) <= MOST_OF_OPTIONS]
    more = f", and {len(listed) - len(told)} more" if len(listed) > len(told) else ""
    config = Path(checkpoint).parent / "config.yaml"
    return f"{', '.join(told)}{more}: resume with --config {config}, or start a new run with another --output_dir"


def state_of_start(init_from: str | None) -> str:
    """A hash over names, sizes and samples of the weights in a folder, or in a file, which a copy elsewhere has too; ""
    for what is neither here.
    """
    place = Path((init_from or "").removeprefix(PTH))
    files = sorted(place.glob("*.safetensors")) if init_from and place.is_dir() else [place] if place.is_file() else []
    digest = hashlib.blake2b(digest_size=16)
    for file in files:
        size = file.stat().st_size
        digest.update(repr((file.name, size)).encode())
        with file.open("rb") as opened:
            for number in range(SAMPLES):
                opened.seek(size * number // SAMPLES)
                digest.update(opened.read(SAMPLE_BYTES))
    return digest.hexdigest() if files else ""


def refuse_other_start(init_from: str | None, changes: Mapping[str, tuple[Any, Any]], state: str = "") -> None:
    """Raises UserError where a run that goes on is told to start from something else than it did, as far as its config
    says.

    state: `state_of_start` when it started, "" where its checkpoint does not say it. The same weights at another path
    are the same start.
    """
    old = changes.get("init_from", (ABSENT,))[0]
    if old == ABSENT or (state and state_of_start(init_from) == state):
        return
    as_it_was = f"--init_from {old}" if old is not None else "without --init_from"
    if state and not Path(old or "").exists():
        as_it_was = f"with the weights of {old}, wherever they are now"
    raise UserError(
        f"--init_from {init_from}: a run that goes on has the weights of its checkpoint; resume it {as_it_was}, "
        "or start a new run with another --output_dir"
    )


def refuse_fewer_steps(checkpoint: Path | str, step: int, max_steps: int, option: str = "max_steps") -> None:
    """Raises UserError where a checkpoint has had more steps than the run is to have."""
    if step > max_steps:
        raise UserError(
            f"{checkpoint} has had {step} steps, and the run ends after {max_steps}; give it more by --{option}, "
            "or start a new run with another --output_dir"
        )


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys with dots; values as JSON has them."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = json.loads(json.dumps(value, default=str))
    return flat
