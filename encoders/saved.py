"""Encoders as folders: what `save_encoder` writes, and how an encoder is built again from its
config."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from encoders.adapters import open_clip_encoder, raw_pixels, timm_encoder, transformers_encoder
from encoders.base import Encoder, EncoderConfig
from encoders.card import write_encoder_card
from encoders.positions import refuse_position_options
from vision_core.errors import UserError, first_line
from vision_core.files.text_files import check_openable, parse_json, read_bytes
from vision_core.runs.publishing import published_whole

CONFIG_FILE = "encoder.json"
WEIGHTS_FILE = "model.safetensors"
SAVE_AGAIN = "save the encoder again"
SHOWN_OF_AN_ERROR = 200

# `EncoderConfig.library` -> the module of encoders/adapters that builds its encoders
LIBRARIES = {
    "transformers": transformers_encoder,
    "timm": timm_encoder,
    "open_clip": open_clip_encoder,
    "raw_pixels": raw_pixels,
}


def build_encoder(
    config: EncoderConfig, *, dtype: torch.dtype = torch.float32, attn_implementation: str | None = None
) -> Encoder:
    """The encoder that `config` describes, with random weights, trainable. Inside
    `torch.device("meta")` it takes no memory.

    attn_implementation: one of transformers' names, for its models; the other libraries choose for
    themselves.

    Raises UserError for what no installed library can build.
    """
    if config.library not in LIBRARIES:
        known = ", ".join(LIBRARIES)
        raise UserError(f"an encoder of the library {config.library!r} cannot be built; known: {known}")
    adapter = LIBRARIES[config.library]
    return adapter.build(config, dtype=dtype, attn_implementation=attn_implementation)


def save_encoder(encoder: Encoder, folder: str | os.PathLike) -> None:
    """Write `encoder.json`, `model.safetensors` and a card, from which `load_encoder(folder)` makes
    the same encoder, offline and bit for bit.

    The folder appears complete or not at all. Raises UserError where it exists and is not empty,
    CheckpointNotWritten where the disk is full.
    """
    target = Path(folder)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target} exists and is not empty; name another folder, nothing is overwritten")
    with published_whole(target) as unfinished:
        weights = {name: tensor.contiguous() for name, tensor in encoder.state_dict().items()}
        save_file(weights, unfinished / WEIGHTS_FILE)
        (unfinished / CONFIG_FILE).write_text(json.dumps(encoder.config().to_dict(), indent=1) + "\n")
        write_encoder_card(unfinished, encoder)


def is_saved_encoder(folder: str | os.PathLike) -> bool:
    """Whether `save_encoder` wrote this folder."""
    return (Path(folder) / CONFIG_FILE).is_file()


# -- an adapter for these folders (see encoders/adapters/__init__.py)


def load(
    name: str, *, source: str, image_size: tuple[int, int] | None, dtype: torch.dtype, **options: Any
) -> Encoder:
    """The encoder in a folder that `save_encoder` wrote, with `options` in place of those that it was
    saved with."""
    folder = Path(name)
    config = _config_with(folder, source=source, **options)
    encoder = _build(config, folder / CONFIG_FILE, dtype)
    weights = _read_weights(folder / WEIGHTS_FILE)
    try:
        encoder.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:SHOWN_OF_AN_ERROR]
        raise UserError(f"{folder / WEIGHTS_FILE} does not fit {CONFIG_FILE} beside it: {reason}") from None
    return encoder


def untrained(
    name: str, *, source: str, image_size: tuple[int, int] | None, dtype: torch.dtype, **options: Any
) -> Encoder:
    """The architecture of a folder that `save_encoder` wrote, with random weights."""
    config = _config_with(Path(name), source=source, untrained=True, **options)
    return build_encoder(transformers_encoder.with_layerscale_one(config), dtype=dtype)


def check(name: str, *, source: str, has_weights: bool) -> None:
    """Raise UserError for a folder whose config cannot be read."""
    _read_config(Path(name))


def _config_with(folder: Path, *, source: str, **options: Any) -> EncoderConfig:
    """The config in a folder, with some values replaced."""
    config = _read_config(folder)
    if config.library != "transformers":
        refuse_position_options(options, source)
    return replace(config, source=source, **options)


def _build(config: EncoderConfig, file: Path, dtype: torch.dtype) -> Encoder:
    try:
        return build_encoder(config, dtype=dtype)
    except UserError as error:
        raise UserError(f"{file}: {error}; {SAVE_AGAIN}") from None
    except Exception as error:  # a library raises whatever it does for a wrong architecture
        reason = first_line(error)
        raise UserError(f"{file}: no encoder can be built of it ({reason}); {SAVE_AGAIN}") from None


def _read_weights(file: Path) -> dict[str, torch.Tensor]:
    try:
        check_openable(file, str(file), SAVE_AGAIN)
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file} cannot be read ({error}); {SAVE_AGAIN}") from None


def _read_config(folder: Path) -> EncoderConfig:
    name = f"{folder / CONFIG_FILE} is not the config of an encoder"
    said = parse_json(read_bytes(folder / CONFIG_FILE, name, SAVE_AGAIN), name, SAVE_AGAIN, finite=True)
    try:
        config = EncoderConfig.from_dict(said)
    except (ValueError, TypeError, AttributeError, OverflowError) as error:
        raise UserError(f"{name} ({first_line(error)}); {SAVE_AGAIN}") from None
    if config.library in ("timm", "open_clip"):
        # what was saved before transforms had this key
        config.transform.setdefault("resampler", "pillow")
    return config
