"""From a text to an encoder, from an encoder to a folder and back."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from encoders.adapters.dinov2_weights import load_dinov2_pth
from encoders.adapters.raw_pixels import RawPixels
from encoders.adapters.tiny import FAMILY_NAMES, tiny_encoder
from encoders.adapters.transformers_encoder import (
    build_transformers,
    family_of,
    load_transformers,
    read_config,
    read_transform,
    vision_config,
)
from encoders.base import Encoder, EncoderConfig
from encoders.card import write_card
from encoders.names import nearest_encoders
from encoders.preprocess import ImageTransform, Preprocess
from vision_core.errors import UserError, first_line
from vision_core.files.regular_files import refuse_special_files
from vision_core.files.text_files import check_openable, parse_json, read_bytes, read_text
from vision_core.hub import hub_or_cache
from vision_core.randomness import seed_of
from vision_core.runs.folder_kinds import refuse_folder
from vision_core.runs.publishing import published_whole

CONFIG_FILE, WEIGHTS_FILE = "encoder.json", "model.safetensors"
KINDS = ("hf", "timm", "open_clip", "dinov2_pth", "tiny")
UNTRAINED = "untrained:"
FOLDERS = (
    "encoder",
    "other_vlm",
    "timm",
    "open_clip",
    "weights",
    "model",
    "unknown",
)  # kinds that are looked into, or refused here


def load_encoder(
    source: str | os.PathLike,
    *,
    layers: Sequence[int] = (-1,),
    norm: bool = True,
    image_size: int | tuple[int, int] | None = None,
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
            `save_encoder` wrote. `untrained:` in front: the architecture with random weights by
            `seed`.
        layers, norm: see `Encoder`.
        image_size: side, or (height, width), that the encoder's own preprocessing makes; default:
            as published.
        dtype: of the weights; pixels are cast to it.
        frozen: no gradients and evaluation mode for good; False leaves the parameters trainable.
        compile: run the forward through torch.compile.
        position_antialias, position_offset: see `TransformersEncoder`; for DINOv2 in transformers
            only.
        preprocess: `published` or `whole`, see `ImageTransform`; default: published, and of what
            `save_encoder` wrote as it was.

    Raises:
        UserError: an unknown name (with the nearest ones), a folder without an encoder or without
            its weights, a layer or size the model does not have.
    """
    text = os.fspath(source)
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    options: dict[str, Any] = {"layers": tuple(layers), "norm": norm, "source": text}
    positions = {"position_antialias": position_antialias, "position_offset": position_offset}
    options |= {name: value for name, value in positions.items() if value is not None}
    with torch.random.fork_rng(
        devices=[]
    ):  # random weights are a function of the seed, and the caller's random numbers are left alone
        torch.manual_seed(seed_of(seed, "encoder"))
        if text.startswith(UNTRAINED):
            encoder = _untrained(text.removeprefix(UNTRAINED), size, dtype, options | {"untrained": True})
        else:
            encoder = _trained(text, size, dtype, options)
    if size is not None:
        encoder.transform = encoder.transform.resized(size)
    if preprocess is not None:
        encoder.transform = replace(encoder.transform, preprocess=preprocess)
    encoder.layer_numbers(encoder.layers)
    encoder.grid(*encoder.transform.size)
    if compile:
        encoder.compile()
    return encoder.freeze() if frozen else encoder.eval()


def check_source(source: str) -> None:
    """Raise UserError for a source text that names no encoder: a wrong name, a folder without one.
    Reads configs and lists of names, no weights."""
    text = source.removeprefix(UNTRAINED)
    has_weights = text == source
    kind, name = _kind_and_name(text)
    if not has_weights:
        _refuse_untrained(text, kind)
    if kind == "folder" and is_timm_folder(Path(name)):
        kind, name = "timm", f"local-dir:{name}"
    if kind == "folder" and has_weights and not (Path(text) / CONFIG_FILE).is_file():
        _check_checkpoint(Path(text))
    if kind in ("folder", "hf"):
        try:
            with hub_or_cache(text) if kind == "hf" else nullcontext():
                _config_of(name)
        except UserError as error:
            raise UserError(f"{error}{_nearest(text) if kind == 'hf' else ''}") from None
    elif kind == "dinov2_pth" and not os.path.exists(name):
        raise UserError(f"{name} cannot be read as weights: there is no such file; name a published .pth")
    elif kind == "tiny" and name not in FAMILY_NAMES:
        raise UserError(f"tiny:{name} does not exist; the families are {', '.join(FAMILY_NAMES)}")
    elif kind == "timm":
        from encoders.adapters.timm_encoder import check_timm

        check_timm(name)
    elif kind == "open_clip":
        from encoders.adapters.open_clip_encoder import check_open_clip

        model, tag = _model_and_tag(text, name) if has_weights else (name.partition("/")[0], None)
        check_open_clip(model, tag)


def build_encoder(
    config: EncoderConfig, *, dtype: torch.dtype = torch.float32, attn_implementation: str | None = None
) -> Encoder:
    """The encoder that `config` describes with random weights, trainable; inside
    `torch.device("meta")` it takes no memory.

    attn_implementation: for models of transformers, one of its names; the other libraries choose
    for themselves.

    Raises UserError for what no installed library can build.
    """
    transform = ImageTransform.from_dict(config.transform)
    options: dict[str, Any] = {
        "layers": config.layers,
        "norm": config.norm,
        "source": config.source,
        "untrained": config.untrained,
    }
    if config.library == "transformers":
        return build_transformers(
            config.architecture,
            transform,
            dtype=dtype,
            attn_implementation=attn_implementation,
            position_antialias=config.position_antialias,
            position_offset=config.position_offset,
            **options,
        )
    if config.library == "timm":
        from encoders.adapters.timm_encoder import timm_from_architecture

        return timm_from_architecture(config.architecture, transform, dtype=dtype, **options)
    if config.library == "open_clip":
        from encoders.adapters.open_clip_encoder import open_clip_from_architecture

        return open_clip_from_architecture(config.architecture, transform, dtype=dtype, **options)
    if config.library == "raw_pixels":
        from encoders.adapters.raw_pixels import RawPixels

        return RawPixels(transform)
    raise UserError(
        f"an encoder of the library {config.library!r} cannot be built; known: transformers, timm, open_clip, raw_pixels"
    )


def save_encoder(encoder: Encoder, folder: str | os.PathLike) -> None:
    """Write `encoder.json`, `model.safetensors` and a card, from which `load_encoder(folder)` makes
    the same encoder, offline and bit for bit.

    The folder appears whole or not at all. Raises UserError where it exists and is not empty,
    CheckpointNotWritten where the disk is full.
    """
    target = Path(folder)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target} exists and is not empty; name another folder, nothing is overwritten")
    with published_whole(target) as written:
        weights = {name: tensor.contiguous() for name, tensor in encoder.state_dict().items()}
        save_file(weights, written / WEIGHTS_FILE)
        (written / CONFIG_FILE).write_text(json.dumps(encoder.config().to_dict(), indent=1) + "\n")
        write_card(written, encoder)


def _trained(text: str, size: tuple[int, int] | None, dtype: torch.dtype, options: dict[str, Any]) -> Encoder:
    kind, name = _kind_and_name(text)
    if kind == "folder":
        return _from_folder(Path(text), size, dtype, options)
    if kind == "hf":
        try:
            with hub_or_cache(text):
                return load_transformers(name, dtype=dtype, **options)
        except UserError as error:
            raise UserError(f"{error}{_nearest(text)}") from None
    if kind == "dinov2_pth":
        return load_dinov2_pth(Path(name), dtype=dtype, **options)
    _refuse_position_options(text, options)
    if kind == "timm":
        from encoders.adapters.timm_encoder import load_timm

        with hub_or_cache(text):
            return load_timm(name, pretrained=True, image_size=size, dtype=dtype, **options)
    if kind == "open_clip":
        from encoders.adapters.open_clip_encoder import load_open_clip

        model, tag = _model_and_tag(text, name)
        with hub_or_cache(text):
            return load_open_clip(model, tag, image_size=size, dtype=dtype, **options)
    if kind == "tiny":
        return tiny_encoder(name, dtype=dtype, **options)
    return RawPixels(layers=options["layers"])


def _model_and_tag(text: str, name: str) -> tuple[str, str]:
    """Of an open_clip model with weights. Raises UserError where they are not named."""
    model, _, tag = name.partition("/")
    if not tag:
        raise UserError(
            f"{text} names no weights{_nearest(text)}; write open_clip:MODEL/TAG, or untrained:open_clip:MODEL"
        )
    return model, tag


def _untrained(
    text: str, size: tuple[int, int] | None, dtype: torch.dtype, options: dict[str, Any]
) -> Encoder:
    kind, name = _kind_and_name(text)
    if kind == "folder" and is_timm_folder(Path(name)):
        kind, name = "timm", f"local-dir:{name}"
    _refuse_untrained(text, kind)
    if kind in ("hf", "folder"):
        with hub_or_cache(text) if kind == "hf" else nullcontext():
            config = replace(_config_of(name), **options)
        if "layerscale_value" in config.architecture:
            # with the 1e-5 that a training starts from, the blocks of a random model would do
            # nothing
            config = replace(config, architecture={**config.architecture, "layerscale_value": 1.0})
        return build_encoder(config, dtype=dtype)
    _refuse_position_options(text, options)
    if kind == "timm":
        from encoders.adapters.timm_encoder import load_timm

        return load_timm(name, pretrained=False, image_size=size, dtype=dtype, **options)
    from encoders.adapters.open_clip_encoder import load_open_clip

    return load_open_clip(name.partition("/")[0], None, image_size=size, dtype=dtype, **options)


def _refuse_untrained(text: str, kind: str) -> None:
    if kind not in ("hf", "folder", "timm", "open_clip"):
        raise UserError(
            f"{UNTRAINED}{text} does not exist; untrained: goes in front of hf:NAME, timm:NAME, open_clip:MODEL or a folder"
        )


def _kind_and_name(text: str) -> tuple[str, str]:
    """The kind, `folder` for what lies on disk, and what stands behind the colon. Raises UserError
    for neither."""
    if os.path.isdir(text):
        return "folder", text
    kind, _, name = text.partition(":")
    if text == "raw_pixels" or (kind in KINDS and name):
        return kind, name
    if os.path.isfile(text):
        raise UserError(
            f"{text} is a file; write dinov2_pth:{text} for a DINOv2 of facebookresearch, open_clip:MODEL/{text} for a checkpoint of open_clip, "
            "or name the folder of a checkpoint"
        )
    raise UserError(
        f"{text!r} is no folder and names no encoder{_nearest(text)}; write a folder, raw_pixels, or KIND:NAME ({', '.join(KINDS)})"
    )


def _from_folder(
    folder: Path, size: tuple[int, int] | None, dtype: torch.dtype, options: dict[str, Any]
) -> Encoder:
    if is_timm_folder(folder):
        from encoders.adapters.timm_encoder import load_timm

        _refuse_position_options(str(folder), options)
        return load_timm(f"local-dir:{folder}", pretrained=True, image_size=size, dtype=dtype, **options)
    if not (folder / CONFIG_FILE).is_file():
        _check_checkpoint(folder)
        return load_transformers(str(folder), dtype=dtype, **options)
    config = replace(_read_config(folder), **options)
    try:
        encoder = build_encoder(config, dtype=dtype)
    except UserError as error:
        raise UserError(f"{folder / CONFIG_FILE}: {error}; save the encoder again") from None
    except Exception as error:  # an architecture that is none raises whatever its library does
        raise UserError(
            f"{folder / CONFIG_FILE}: no encoder can be built of it ({first_line(error)}); save the encoder again"
        ) from None
    try:
        check_openable(folder / WEIGHTS_FILE, str(folder / WEIGHTS_FILE), "save the encoder again")
        weights = load_file(folder / WEIGHTS_FILE)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{folder / WEIGHTS_FILE} cannot be read ({error}); save the encoder again") from None
    try:
        encoder.load_state_dict(weights)
    except RuntimeError as error:
        raise UserError(
            f"{folder / WEIGHTS_FILE} does not fit {CONFIG_FILE} beside it: {' '.join(str(error).split())[:200]}"
        ) from None
    return encoder


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


def _check_checkpoint(folder: Path) -> None:
    refuse_folder(folder, "an encoder", FOLDERS, lacks="encoder")
    if (folder / "open_clip_config.json").is_file():
        raise UserError(
            f"{folder} is a folder of open_clip; write open_clip:MODEL/{folder}/open_clip_model.safetensors with its model's name"
        )
    if not (folder / "config.json").is_file():
        raise UserError(
            f"{folder} holds no encoder: there is neither {CONFIG_FILE} nor config.json; name a run's or a checkpoint's folder"
        )
    if not any(folder.glob("*.safetensors")):
        raise UserError(
            f"{folder} has a config but no weights (*.safetensors); name a whole checkpoint, or untrained:{folder} for random weights"
        )


def _config_of(place: str) -> EncoderConfig:
    """The config of a folder or of a Hub name, whatever its weights."""
    if (Path(place) / CONFIG_FILE).is_file():
        return _read_config(Path(place))
    config = read_config(place)
    family_of(config, place)
    return EncoderConfig("transformers", vision_config(config).to_dict(), read_transform(place).to_dict())


def _read_config(folder: Path) -> EncoderConfig:
    name, cure = f"{folder / CONFIG_FILE} is no encoder's config", "save the encoder again"
    said = parse_json(read_bytes(folder / CONFIG_FILE, name, cure), name, cure, finite=True)
    try:
        config = EncoderConfig.from_dict(said)
    except (ValueError, TypeError, AttributeError, OverflowError) as error:
        raise UserError(f"{name} ({first_line(error)}); {cure}") from None
    if config.library in ("timm", "open_clip"):  # what was saved before transforms had this key
        config.transform.setdefault("resampler", "pillow")
    return config


def _refuse_position_options(text: str, options: dict[str, Any]) -> None:
    for name in ("position_antialias", "position_offset"):
        if name in options:
            raise UserError(f"{name} is for DINOv2 in transformers, not for {text}; leave it out")


def _nearest(text: str) -> str:
    near = nearest_encoders(text.removeprefix(UNTRAINED))
    return f"; nearest: {', '.join(near)}" if near and text not in near else ""
