"""From a text to an encoder."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from encoders import saved
from encoders.adapters import (
    dinov2_weights,
    open_clip_encoder,
    raw_pixels,
    timm_encoder,
    tiny,
    transformers_encoder,
)
from encoders.base import Encoder
from encoders.names import nearest_encoders_clause
from encoders.preprocess import Preprocess
from encoders.saved import CONFIG_FILE, is_saved_encoder
from encoders.source_text import ENCODER_KINDS, FOLDER, RAW_PIXELS, UNTRAINED, split_kind, split_source
from vision_core.errors import UserError
from vision_core.files.regular_files import refuse_special_files
from vision_core.files.text_files import parse_json, read_text
from vision_core.randomness import seed_of
from vision_core.runs.folder_kinds import refuse_folder

SAVED = "saved"  # a folder that `save_encoder` wrote
# kind -> its adapter (see encoders/adapters/__init__.py); a folder is one of `saved`, `timm`, `hf`
ADAPTERS = {
    "hf": transformers_encoder,
    "timm": timm_encoder,
    "open_clip": open_clip_encoder,
    "dinov2_pth": dinov2_weights,
    "tiny": tiny,
    RAW_PIXELS: raw_pixels,
    SAVED: saved,
}
KINDS_WITHOUT_WEIGHTS = ("hf", "timm", "open_clip", SAVED)
# folders of these kinds may hold an encoder, or are refused here with a message of their own
ENCODER_FOLDERS = ("encoder", "other_vlm", "timm", "open_clip", "weights", "model", "unknown")


def load_encoder(
    source: str | os.PathLike,
    *,
    layers: Sequence[int] | None = None,
    norm: bool | None = None,
    image_size: int | tuple[int, int] | None = None,
    grid: int | None = None,
    dtype: torch.dtype = torch.float32,
    frozen: bool = True,
    compile: bool = False,
    position_antialias: bool | None = None,
    position_offset: float | None = None,
    preprocess: Preprocess | None = None,
    seed: int = 0,
) -> Encoder:
    """The encoder that `source` names, in evaluation mode, on the CPU.

    Args:
        source: `hf:NAME`, `timm:NAME`, `open_clip:MODEL/TAG`, `dinov2_pth:FILE`, `tiny:FAMILY`,
            `raw_pixels`, or a folder: a run of `pretrain/`, a transformers checkpoint, or what
            `save_encoder` wrote. `untrained:` in front takes the architecture with random weights
            by `seed`. Options may follow, such as `?layers=-2&norm=false&image_size=336&grid=24`:
            any of layers, norm, image_size, grid, position_antialias, position_offset, preprocess.
        layers, norm: see `Encoder`; default: the last layer, behind the model's final norm.
        image_size: side, or (height, width), that the encoder's own preprocessing makes; default:
            as published.
        grid: side of the grid to which fusion resizes the encoder's map; see `Encoder.fusion_grid`.
        dtype: of the weights; pixels are cast to it.
        frozen: no gradients and evaluation mode for good; False leaves the parameters trainable.
        compile: run the forward through torch.compile.
        position_antialias, position_offset: see `TransformersEncoder`; for DINOv2 in transformers
            only.
        preprocess: `published` or `whole`, see `ImageTransform`; default: published, and for what
            `save_encoder` wrote as it was saved.

    Raises:
        UserError: an unknown name (with the nearest ones), a folder without an encoder or without
            its weights, a layer or size that the model does not have, an unknown option, an option
            that is given both in the text and as an argument.
    """
    arguments = {
        "layers": layers,
        "norm": norm,
        "image_size": image_size,
        "grid": grid,
        "position_antialias": position_antialias,
        "position_offset": position_offset,
        "preprocess": preprocess,
    }
    text, options = _source_and_options(os.fspath(source), arguments)
    size = _height_and_width(options.pop("image_size", None))
    fusion_grid = options.pop("grid", None)
    way = options.pop("preprocess", None)
    encoder = _load(text, size, dtype, seed, options)
    if size is not None:
        encoder.transform = encoder.transform.resized(size)
    if way is not None:
        encoder.transform = replace(encoder.transform, preprocess=way)
    encoder.fusion_grid = fusion_grid
    encoder.layer_numbers(encoder.layers)
    encoder.grid(*encoder.transform.size)
    if compile:
        encoder.compile()
    return encoder.freeze() if frozen else encoder.eval()


def check_source(text: str) -> None:
    """Raise UserError for a text that names no encoder: a wrong name, a wrong option, a folder
    without an encoder. Configs and lists of names are read, and no weights."""
    source, _ = split_source(text)
    kind, name = _kind_and_name(source)
    has_weights = not source.startswith(UNTRAINED)
    ADAPTERS[kind].check(name, source=source, has_weights=has_weights)


def is_timm_folder(folder: Path) -> bool:
    """Whether the folder is what timm pushes to the Hub (UNI, Virchow): a config.json that names an
    `architecture`."""
    refuse_special_files(folder)
    config = str(folder / "config.json")
    try:
        said = parse_json(read_text(config, config, ""), config, "")
    except UserError:
        return False
    return isinstance(said, dict) and "architecture" in said and "model_type" not in said


def _source_and_options(text: str, arguments: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The source without options, and all options that are given, in the text or as arguments."""
    source, options = split_source(text)
    for name, value in arguments.items():
        if value is None:
            continue
        if name in options:
            raise UserError(f"encoder {text!r}: {name} is also given as an argument; give it once")
        options[name] = value
    return source, options


def _height_and_width(image_size: int | Sequence[int] | None) -> tuple[int, int] | None:
    if isinstance(image_size, int):
        return image_size, image_size
    return image_size


def _load(
    source: str, size: tuple[int, int] | None, dtype: torch.dtype, seed: int, options: dict[str, Any]
) -> Encoder:
    """The encoder with its weights, or with random ones that are a function of the seed. The
    caller's random numbers are left alone."""
    kind, name = _kind_and_name(source)
    options.setdefault("layers", (-1,))
    options.setdefault("norm", True)
    options["layers"] = tuple(options["layers"])
    adapter = ADAPTERS[kind]
    load = adapter.untrained if source.startswith(UNTRAINED) else adapter.load
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(seed, "encoder"))
        return load(name, source=source, image_size=size, dtype=dtype, **options)


def _kind_and_name(source: str) -> tuple[str, str]:
    """The kind in `ADAPTERS`, and the name that its adapter reads. Raises UserError for a text that
    is neither a folder with an encoder nor KIND:NAME."""
    text = source.removeprefix(UNTRAINED)
    has_weights = text == source
    kind, name = split_kind(text)
    if kind == FOLDER:
        kind, name = _kind_of_folder(Path(name), has_weights)
    elif kind == "":
        raise UserError(_problem_with(text))
    if not has_weights and kind not in KINDS_WITHOUT_WEIGHTS:
        raise UserError(
            f"{source} does not exist; "
            "untrained: goes in front of hf:NAME, timm:NAME, open_clip:MODEL or a folder"
        )
    return kind, name


def _kind_of_folder(folder: Path, has_weights: bool) -> tuple[str, str]:
    if is_timm_folder(folder):
        return "timm", f"local-dir:{folder}"
    if is_saved_encoder(folder):
        return SAVED, str(folder)
    if has_weights:
        _check_checkpoint(folder)
    return "hf", str(folder)


def _check_checkpoint(folder: Path) -> None:
    """Raise UserError for a folder that is not a checkpoint of transformers with its weights."""
    refuse_folder(folder, "an encoder", ENCODER_FOLDERS, lacks="encoder")
    if (folder / "open_clip_config.json").is_file():
        raise UserError(
            f"{folder} is a folder of open_clip; "
            f"write open_clip:MODEL/{folder}/open_clip_model.safetensors with its model's name"
        )
    if not (folder / "config.json").is_file():
        raise UserError(
            f"{folder} holds no encoder: there is neither {CONFIG_FILE} nor config.json; "
            "name a run's or a checkpoint's folder"
        )
    if not any(folder.glob("*.safetensors")):
        raise UserError(
            f"{folder} has a config but no weights (*.safetensors); "
            f"name a complete checkpoint, or untrained:{folder} for random weights"
        )


def _problem_with(text: str) -> str:
    """What is wrong with a text that names neither a folder nor a kind."""
    if os.path.isfile(text):
        return (
            f"{text} is a file; write dinov2_pth:{text} for a DINOv2 of facebookresearch, "
            f"open_clip:MODEL/{text} for a checkpoint of open_clip, or name the folder of a checkpoint"
        )
    kinds = ", ".join(ENCODER_KINDS)
    return (
        f"{text!r} is no folder and names no encoder{nearest_encoders_clause(text)}; "
        f"write a folder, raw_pixels, or KIND:NAME ({kinds})"
    )
