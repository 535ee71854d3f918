"""From encoders and a language model to a first fused model, its connector untrained."""

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
    """A fused vision model with the encoders' own weights and a new connector, and its image
    processor.

    Args:
        encoders: `Encoder`s, or source texts for `load_encoder`. They see squares of the side of
            their transform.
        hidden_size: channels of the tokens: the hidden size of the language model that will read
            them.
        grid: side of the connector's grid; default: the smallest of the encoders' own grids.
        encoder_grids: grids that the encoders' maps are resized to; default: each encoder's
            `fusion_grid` (`?grid=` in its text), or else the multiple of `grid` nearest to its own.
        connector, connector_options, newline, fit, mask_rule, train_encoders: see
            `FusedVisionConfig`.
        seed: of the connector's weights.

    Raises UserError for encoders that see no squares or no three channels, and for what
    `build_connector` refuses.
    """
    loaded = [load_encoder(each) if isinstance(each, str) else each for each in encoders]
    if not loaded:
        raise UserError("there is nothing to fuse; name at least one encoder")
    own_grids = [own_grid(encoder) for encoder in loaded]
    grid = grid or min(own_grids)
    if not encoder_grids:
        encoder_grids = []
        for encoder, own in zip(loaded, own_grids, strict=True):
            encoder_grids.append(encoder.fusion_grid or max(round(own / grid), 1) * grid)
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


def image_processor_of(model: FusedVisionModel) -> FusionImageProcessor:
    """What makes the pixels of a fused model."""
    config, connector = model.config, model.connector
    return FusionImageProcessor(
        [each.transform for each in config.encoder_configs],
        config.fit,
        config.mask_rule,
        config.grid,
        connector.tokens_per_cell,
        connector.image_newline is not None,
        connector.fixed_tokens,
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
    """A vision-language model of a fused vision model and a causal language model, and its
    processor.

    Args:
        language_model: any `AutoModelForCausalLM`, or the name or folder of one, or `tiny:FAMILY`,
            which bring their tokenizer.
        tokenizer: of a language model that is given as an object.
        chat_template: in place of the tokenizer's own; `fusion.chat_templates` has some.
        num_sva_layers, sva_start, sva_stride, zero_init_sva: see `FusionVlmConfig`; Cambrian-1-8B
            has 10, 0, 3.
        seed: of the weights of those layers.

    The tokenizer gets the token `<image>` where it has none, and a row of embeddings for it where
    there is no spare one. The chat template is kept, or the plain one taken where there is none; it
    takes messages with images and writes BOS where the tokenizer adds one. Generation stops where
    the template ends an answer. Raises UserError where the hidden sizes differ or the language
    model cannot be read.
    """
    if isinstance(language_model, str):
        language_model, tokenizer = load_language_model(language_model)
    if tokenizer is None:
        raise UserError("a language model that is given as an object needs its tokenizer; pass tokenizer=")
    if not getattr(tokenizer, "is_fast", False):
        raise UserError(
            f"{type(tokenizer).__name__} does not tell where in a text its tokens stand, so answers cannot be told from prompts; "
            "use a tokenizer with a tokenizer.json"
        )
    tokenizer.add_special_tokens(
        {"additional_special_tokens": [IMAGE_TOKEN]}, replace_extra_special_tokens=False
    )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = tokenizer.init_kwargs["padding_side"] = (
        "left"  # generation writes behind the prompt; only what is in init_kwargs is saved
    )
    image_token_id = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    attention = {
        "vision_config": vision_model.config._attn_implementation,
        "text_config": language_model.config._attn_implementation,
    }
    config = FusionVlmConfig(
        vision_config=vision_model.config,
        text_config=language_model.config,
        image_token_id=image_token_id,
        num_sva_layers=num_sva_layers,
        sva_start=sva_start,
        sva_stride=sva_stride,
        zero_init_sva=zero_init_sva,
    )
    config._attn_implementation = attention  # a new config takes the settings of the configs in it away
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(seed, "vision layers"))
        if image_token_id >= language_model.get_input_embeddings().num_embeddings:
            language_model.resize_token_embeddings(len(tokenizer))
        model = FusionVlmForConditionalGeneration(config, vision_model, language_model).eval()
    model.generation_config = language_model.generation_config
    if model.generation_config.pad_token_id is None:
        model.generation_config.pad_token_id = tokenizer.pad_token_id
    template = chat_template_for(chat_template or tokenizer.chat_template, tokenizer)
    processor = FusionProcessor(image_processor_of(vision_model), tokenizer, template)
    add_stops(model.generation_config, processor)
    return model, processor


def load_language_model(
    name: str, dtype: torch.dtype = torch.float32
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model and its tokenizer, from a folder, the Hub, or `tiny:FAMILY`. Raises
    UserError where they cannot be read."""
    if name.startswith("tiny:"):
        return tiny_language_model(name.removeprefix("tiny:"))
    if os.path.isdir(name):
        refuse_folder(name, "a language model", ("language_model", "other_vlm", "model", "unknown"))
    with hub_or_cache(name, f"the language model {name}"):
        return _load_language_model(name, dtype)


def _load_language_model(name: str, dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        return AutoModelForCausalLM.from_pretrained(name, dtype=dtype, trust_remote_code=False), tokenizer
    except Exception as error:  # a broken checkpoint raises whatever its reader does
        reason = first_line(error)
        raise UserError(
            f"{name} is no causal language model with a tokenizer that can be read ({reason}); check the name or the folder"
        ) from None


def own_grid(encoder: Encoder) -> int:
    """Side of the encoder's own map of the squares it sees. Raises UserError where it sees none."""
    height, width = encoder.transform.size
    if height != width or encoder.num_channels != 3:
        raise UserError(
            f"{encoder.name} sees {encoder.num_channels} channels of {height} x {width} pixels; fused encoders see 3 channels and squares: load it with one "
            "number as image_size"
        )
    return encoder.grid(height, width)[0]
