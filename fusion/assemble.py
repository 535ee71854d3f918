"""Make a first fused model from encoders and a language model; its connector is untrained."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from encoders.base import Encoder
from encoders.load import load_encoder
from fusion.chat_templates import chat_template_for
from fusion.chat_turns import add_stops
from fusion.configuration_fusion import FusedVisionConfig, FusionVlmConfig
from fusion.connectors.geometry import nearest_grid
from fusion.image_processing_fusion import FusionImageProcessor
from fusion.modeling_fused_vision import FusedVisionModel
from fusion.modeling_fusion_vlm import FusionVlmForConditionalGeneration
from fusion.processing_fusion import IMAGE_TOKEN, FusionProcessor
from fusion.tiny import tiny_language_model
from vision_core.errors import UserError, first_line
from vision_core.hub import hub_or_cache
from vision_core.randomness import seed_of
from vision_core.runs.folder_kinds import refuse_folder


def fuse_encoders(
    encoders: Sequence[Encoder | str],
    *,
    hidden_size: int,
    connector: str = "sva",
    connector_options: dict[str, Any] | None = None,
    grid: int | None = None,
    encoder_grids: Sequence[int] | None = None,
    newline: bool = True,
    fit: str = "pad",
    mask_rule: str = "exact",
    train_encoders: bool = False,
    seed: int = 0,
) -> tuple[FusedVisionModel, FusionImageProcessor]:
    """Make a fused vision model and its image processor: the encoders keep their weights, the
    connector is new.

    Args:
        encoders: `Encoder`s, or source texts for `load_encoder`. Each sees squares of the side of
            its transform.
        hidden_size: D_h, channels of the tokens: the hidden size of the language model that will
            read them.
        grid: side of the connector's grid; default: the smallest of the encoders' own grids.
        encoder_grids: grids that the encoders' maps are resized to; default: each encoder's
            `fusion_grid` (`?grid=` in its text), or else the multiple of `grid` nearest to its own.
        connector, connector_options, newline, fit, mask_rule, train_encoders: see
            `FusedVisionConfig`.
        seed: seed of the connector's weights.

    Raises UserError for encoders that do not see squares of three channels, and for what
    `build_connector` refuses.
    """
    if not encoders:
        raise UserError("there is nothing to fuse; name at least one encoder")
    loaded = [load_encoder(each) if isinstance(each, str) else each for each in encoders]
    own_grids = [own_grid(encoder) for encoder in loaded]
    grid = grid or min(own_grids)
    if not encoder_grids:
        encoder_grids = []
        for encoder, own in zip(loaded, own_grids, strict=True):
            encoder_grids.append(encoder.fusion_grid or nearest_grid(own, grid))
    config = FusedVisionConfig(
        encoders=[encoder.config().to_dict() for encoder in loaded],
        encoder_grids=list(encoder_grids),
        connector=connector,
        connector_options=connector_options,
        hidden_size=hidden_size,
        grid=grid,
        newline=newline,
        fit=fit,
        mask_rule=mask_rule,
        train_encoders=train_encoders,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(seed, "connector"))
        model = FusedVisionModel(config, loaded).eval()
    return model, image_processor_of(model)


def own_grid(encoder: Encoder) -> int:
    """The side of the encoder's own map of the squares it sees.

    Raises UserError where the encoder does not see squares of three channels.
    """
    height, width = encoder.transform.size
    if height != width or encoder.num_channels != 3:
        raise UserError(
            f"{encoder.name} sees {encoder.num_channels} channels of {height} x {width} pixels; fused encoders "
            "see 3 channels and squares: load it with one number as image_size"
        )
    return encoder.grid(height, width)[0]


def image_processor_of(model: FusedVisionModel) -> FusionImageProcessor:
    """Make the processor that turns images into the pixels of a fused model."""
    config = model.config
    connector = model.connector
    return FusionImageProcessor(
        transforms=[each.transform for each in config.encoder_configs],
        fit=config.fit,
        mask_rule=config.mask_rule,
        grid=config.grid,
        tokens_per_cell=connector.tokens_per_cell,
        newline=connector.image_newline is not None,
        fixed_tokens=connector.fixed_tokens,
    )


def assemble_vlm(
    vision_model: FusedVisionModel,
    language_model: PreTrainedModel | str,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    chat_template: str | None = None,
    num_sva_layers: int = 0,
    sva_start: int = 0,
    sva_stride: int = 3,
    zero_init_sva: bool = False,
    seed: int = 0,
) -> tuple[FusionVlmForConditionalGeneration, FusionProcessor]:
    """Make a vision-language model and its processor from a fused vision model and a causal
    language model.

    Args:
        language_model: any `AutoModelForCausalLM`; or the name or folder of one, or `tiny:FAMILY`,
            which bring their tokenizer.
        tokenizer: the tokenizer of a language model that is given as an object.
        chat_template: used in place of the tokenizer's own; `fusion.chat_templates` has some.
        num_sva_layers, sva_start, sva_stride, zero_init_sva: see `FusionVlmConfig`; Cambrian-1-8B
            has 10, 0, 3.
        seed: seed of the weights of those layers.

    The tokenizer gets the token `<image>`, and the embeddings a row for it, where they have none.
    The chat template is kept, or the plain one is taken where there is none; it takes messages with
    images, and writes BOS where the tokenizer adds one. Generation stops where the template ends an
    answer. Raises UserError where the hidden sizes differ or the language model cannot be read.
    """
    if isinstance(language_model, str):
        language_model, tokenizer = load_language_model(language_model)
    _check_tokenizer(tokenizer)
    _prepare_tokenizer(tokenizer)
    config = _vlm_config(
        vision_model,
        language_model,
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        num_sva_layers=num_sva_layers,
        sva_start=sva_start,
        sva_stride=sva_stride,
        zero_init_sva=zero_init_sva,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(seed, "vision layers"))
        _make_room_for_image_token(language_model, tokenizer, config.image_token_id)
        model = FusionVlmForConditionalGeneration(config, vision_model, language_model).eval()
    model.generation_config = language_model.generation_config
    if model.generation_config.pad_token_id is None:
        model.generation_config.pad_token_id = tokenizer.pad_token_id
    template = chat_template_for(chat_template or tokenizer.chat_template, tokenizer)
    processor = FusionProcessor(image_processor_of(vision_model), tokenizer, template)
    add_stops(model.generation_config, processor)
    return model, processor


def _check_tokenizer(tokenizer: PreTrainedTokenizerBase | None) -> None:
    if tokenizer is None:
        raise UserError("a language model that is given as an object needs its tokenizer; pass tokenizer=")
    if not getattr(tokenizer, "is_fast", False):
        raise UserError(
            f"{type(tokenizer).__name__} does not tell where in a text its tokens stand, so answers cannot "
            "be told from prompts; use a tokenizer with a tokenizer.json"
        )


def _prepare_tokenizer(tokenizer: PreTrainedTokenizerBase) -> None:
    """Give the tokenizer the image token and a padding token, and let it pad on the left."""
    special_tokens = {"additional_special_tokens": [IMAGE_TOKEN]}
    tokenizer.add_special_tokens(special_tokens, replace_extra_special_tokens=False)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "left"  # generation writes behind the prompt
    tokenizer.init_kwargs["padding_side"] = "left"  # only what is in init_kwargs is saved


def _vlm_config(
    vision_model: FusedVisionModel, language_model: PreTrainedModel, **options: Any
) -> FusionVlmConfig:
    """The config of both models together, with the attention implementation that each has."""
    attention = {  # looked up first: a new config takes the settings of the configs in it away
        "vision_config": vision_model.config._attn_implementation,
        "text_config": language_model.config._attn_implementation,
    }
    config = FusionVlmConfig(vision_config=vision_model.config, text_config=language_model.config, **options)
    config._attn_implementation = attention
    return config


def _make_room_for_image_token(
    language_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, image_token_id: int
) -> None:
    """Add a row of embeddings for the image token where there is no spare one."""
    if image_token_id >= language_model.get_input_embeddings().num_embeddings:
        language_model.resize_token_embeddings(len(tokenizer))


def load_language_model(
    name: str, dtype: torch.dtype = torch.float32
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a causal language model and its tokenizer from a folder, the Hub, or `tiny:FAMILY`.

    Raises UserError where they cannot be read.
    """
    if name.startswith("tiny:"):
        return tiny_language_model(name.removeprefix("tiny:"))
    if os.path.isdir(name):
        refuse_folder(name, "a language model", ("language_model", "other_vlm", "model", "unknown"))
    with hub_or_cache(name, f"the language model {name}"):
        return _read_language_model(name, dtype)


def _read_language_model(name: str, dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        model = AutoModelForCausalLM.from_pretrained(name, dtype=dtype, trust_remote_code=False)
    except Exception as error:  # a broken checkpoint raises whatever its reader does
        reason = first_line(error)
        raise UserError(
            f"{name} is not a causal language model with a tokenizer that can be read ({reason}); "
            "check the name or the folder"
        ) from None
    return model, tokenizer
