"""Loads the model and processor that a SigLIP or MAE run goes on from, to the last weight."""

import os
from contextlib import nullcontext
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from encoders.adapters.transformers_encoder import read_config
from vision_core.errors import UserError, first_line
from vision_core.hub import hub_or_cache
from vision_core.images.pixel_options import pixel_options_text
from vision_core.images.source import ImageSource
from vision_core.runs.folder_kinds import refuse_folder


def load_model_and_processor(
    model_class: type[PreTrainedModel], processor_class: Any, name: str, needed: tuple[str, ...] = ()
) -> tuple[PreTrainedModel, Any]:
    """The model and processor of `--init_from`, from a folder or the Hub. needed: the processor's
    parts, as in `load_processor`."""
    with nullcontext() if os.path.exists(name) else hub_or_cache(f"--init_from {name}"):
        model = load_complete_model(model_class, name)
        return model, load_processor(processor_class, name, needed)


def load_complete_model(
    model_class: type[PreTrainedModel],
    name: str,
    option: str = "--init_from",
    config: PreTrainedConfig | None = None,
    cure: str = "give a complete checkpoint",
) -> PreTrainedModel:
    """A model from a folder, or inside `hub_or_cache` from the Hub, in float32.

    config: what it must be, to the last weight; by default whatever the checkpoint says. cure: for
    weights that do not fit.

    Raises UserError, which names `option`, for a model of another kind, for missing weights, or for
    what cannot be read.
    """
    name = name.removeprefix("hf:")
    wanted = model_class.config_class.model_type
    if os.path.isdir(name):
        refuse_folder(name, f"a complete {wanted} of transformers", ("encoder", "model", "unknown"))
    saved_config = read_config(name)
    if saved_config.model_type != wanted:
        raise UserError(f"{option} {name} is a {saved_config.model_type}; give a {wanted}")
    try:
        model, report = model_class.from_pretrained(
            name,
            config=config or saved_config,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(
            f"{option} {name} cannot be loaded ({first_line(error)}); give a complete {wanted}"
        ) from None
    refuse_missing_weights(f"{option} {name}", wanted, report, cure)
    if config and report["unexpected_keys"]:
        extra = min(report["unexpected_keys"])
        raise UserError(f"{option} {name} has more weights than the run's model, such as {extra}; {cure}")
    return model


def refuse_missing_weights(what: str, model_type: str, report: dict[str, Any], cure: str) -> None:
    """Raises UserError where transformers' loading report names weights that are missing or have
    another shape."""
    words = {key: key for key in report["missing_keys"]}
    for key, saved_shape, own_shape in report["mismatched_keys"]:
        words[key] = f"{key}, which is {list(saved_shape)} there and {list(own_shape)} here"
    if words:
        first = words[min(words)]
        raise UserError(
            f"{what} lacks {len(words)} weights of a {model_type} of this size, such as {first}; {cure}"
        )


def load_processor(
    processor_class: Any, name: str, needed: tuple[str, ...] = (), option: str = "--init_from"
) -> Any:
    """The processor beside a model. needed: its parts, such as "tokenizer"; none for an image
    processor alone. Raises UserError, which names `option`, where one is missing."""
    try:
        processor = processor_class.from_pretrained(name.removeprefix("hf:"), trust_remote_code=False)
        for part in needed:
            getattr(processor, part)
    except (OSError, ValueError, AttributeError) as error:
        if needed:
            problem, cure = "no processor of images and texts", "add its files"
        else:
            problem, cure = "no image processor", "add its preprocessor_config.json"
        raise UserError(f"{option} {name} has {problem} ({first_line(error)}); {cure}") from None
    return processor


def fit_processor(processor: Any, source: ImageSource) -> Any:
    """Let a processor divide by 255 only where the images of `source` are pictures of 0 to 255:
    `?scale=` has made them 0..1. Returns the processor.

    It is set both ways, for a processor of `--init_from` may come from data of the other kind.
    `pixel_options` is how files were read.
    """
    image_processor = image_processor_of(processor)
    image_processor.do_rescale = source.pixel_options.scale is None
    image_processor.pixel_options = pixel_options_text(source.pixel_options)
    return processor


def normalisation_of(processor: Any) -> tuple[list[float], list[float]]:
    """Mean and std of an image processor, alone or beside a tokenizer."""
    image_processor = image_processor_of(processor)
    return image_processor.image_mean, image_processor.image_std


def image_processor_of(processor: Any) -> Any:
    """The image processor of a processor, or the processor where it is one itself."""
    return getattr(processor, "image_processor", processor)
