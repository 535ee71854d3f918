"""Encoders with a text tower: images and texts as vectors of one space."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModel, AutoTokenizer

from encoders.adapters.open_clip_encoder import import_open_clip, load_whole_model, transform_from_preprocess
from encoders.adapters.transformers_encoder import TransformersEncoder, read_config, read_transform
from encoders.preprocess import ImageTransform, Preprocess
from vision_core.errors import UserError
from vision_core.hub import hub_or_cache
from vision_core.runs.folder_kinds import refuse_folder


@dataclass(frozen=True)
class TextTower:
    """How a family of transformers reads texts. image_projection: its attribute behind the pooled
    vision tower, or None.

    padded: texts are lower case and filled up to the full length, and the padding is attended to,
    as SigLIP and SigLIP 2 were trained (fixed-resolution SigLIP 2 has a tokenizer that leaves upper
    case alone, and then loses accuracy). Otherwise as long as the longest, and masked.
    """

    padded: bool
    image_projection: str | None


TEXT_TOWERS = {
    "siglip": TextTower(padded=True, image_projection=None),
    "siglip2": TextTower(padded=True, image_projection=None),
    "clip": TextTower(padded=False, image_projection="visual_projection"),
    "metaclip_2": TextTower(padded=False, image_projection="visual_projection"),
}


class ImageTextModel(nn.Module):
    """Images and texts as vectors of length 1; frozen, in evaluation mode.

    Attributes:
        transform: the published preprocessing of images.
        logit_scale, logit_bias: the model's logit of a pair is logit_scale * cosine + logit_bias
            (bias 0 where it has none).
        source: what it was loaded from, for people.
    """

    def __init__(
        self, transform: ImageTransform, logit_scale: Tensor, logit_bias: Tensor | None, source: str
    ) -> None:
        super().__init__()
        self.transform, self.source = transform, source
        self.logit_scale = logit_scale.float().exp().item()
        self.logit_bias = 0.0 if logit_bias is None else logit_bias.float().item()

    @torch.no_grad()
    def encode_images(self, pixel_values: Tensor) -> Tensor:
        """`[B, 3, H, W]`, preprocessed as `transform` says, to `[B, D]` of length 1, float32.
        Raises UserError for sizes that the model cannot take."""
        return F.normalize(self.image_vectors(pixel_values.to(self.device, self.dtype)).float(), dim=-1)

    @torch.no_grad()
    def encode_texts(self, texts: Sequence[str], batch_size: int = 256) -> Tensor:
        """n texts, cut to the length that the model was trained with, to `[n, D]` of length 1,
        float32."""
        batches = [texts[start : start + batch_size] for start in range(0, len(texts), batch_size)]
        return F.normalize(torch.cat([self.text_vectors(list(batch)).float() for batch in batches]), dim=-1)

    def image_vectors(self, pixel_values: Tensor) -> Tensor:
        """`[B, D]`, as the adapter's library gives them."""
        raise NotImplementedError

    def text_vectors(self, texts: list[str]) -> Tensor:
        """`[n, D]`, as the adapter's library gives them."""
        raise NotImplementedError

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Of the weights."""
        return next(self.parameters()).device


class TransformersImageText(ImageTextModel):
    """A `SiglipModel`, `Siglip2Model`, `CLIPModel` or `MetaClip2Model` with its tokenizer."""

    def __init__(self, model: nn.Module, tokenizer: Any, transform: ImageTransform, source: str = "") -> None:
        super().__init__(transform, model.logit_scale, getattr(model, "logit_bias", None), source)
        self.model, self.tokenizer = model, tokenizer
        self.tower = TEXT_TOWERS[model.config.model_type]
        self.vision = TransformersEncoder(model.vision_model, transform, source=source)
        self.requires_grad_(False).eval()

    def image_vectors(self, pixel_values: Tensor) -> Tensor:
        pooled = self.vision(pixel_values).pooled
        return (
            getattr(self.model, self.tower.image_projection)(pooled)
            if self.tower.image_projection
            else pooled
        )

    def text_vectors(self, texts: list[str]) -> Tensor:
        options = {
            "truncation": True,
            "max_length": self.model.config.text_config.max_position_embeddings,
            "return_tensors": "pt",
        }
        if self.tower.padded:
            lower = [text.lower() for text in texts]
            tokens = {
                "input_ids": self.tokenizer(lower, padding="max_length", padding_side="right", **options)[
                    "input_ids"
                ]
            }
        else:
            said = self.tokenizer(texts, padding=True, padding_side="right", **options)
            tokens = {name: said[name] for name in ("input_ids", "attention_mask")}
        tokens = {name: each.to(self.device) for name, each in tokens.items()}
        return self.model.get_text_features(**tokens).pooler_output


class OpenClipImageText(ImageTextModel):
    """Both towers of an open_clip model with its tokenizer."""

    def __init__(self, model: nn.Module, tokenizer: Any, transform: ImageTransform, source: str = "") -> None:
        super().__init__(transform, model.logit_scale, model.logit_bias, source)
        self.model, self.tokenizer = model, tokenizer
        self.requires_grad_(False).eval()

    def image_vectors(self, pixel_values: Tensor) -> Tensor:
        if tuple(pixel_values.shape[-2:]) != self.transform.size:
            height, width = self.transform.size
            raise UserError(
                f"{self.source}: images must be {height} x {width} pixels, not {' x '.join(map(str, pixel_values.shape[-2:]))}"
            )
        return self.model.encode_image(pixel_values)

    def text_vectors(self, texts: list[str]) -> Tensor:
        return self.model.encode_text(self.tokenizer(texts).to(self.device))


def load_image_text(
    source: str | os.PathLike, *, dtype: torch.dtype = torch.float32, preprocess: Preprocess = "published"
) -> ImageTextModel:
    """The image-text model that `source` names, frozen, on the CPU.

    Args:
        source: `hf:NAME` or a folder (SigLIP, SigLIP 2 with fixed resolution or NaFlex, CLIP,
            MetaCLIP 2), or `open_clip:MODEL/TAG`, where the tag may be a .safetensors file.
        dtype: of the weights; embeddings are float32.
        preprocess: see `ImageTransform`.

    Raises:
        UserError: an encoder without a text tower, a checkpoint without some of its parts, an
            unknown name.
    """
    model = _load(os.fspath(source), dtype)
    model.transform = replace(model.transform, preprocess=preprocess)
    return model


def _load(text: str, dtype: torch.dtype) -> ImageTextModel:
    kind, _, name = text.partition(":")
    if os.path.isdir(text):
        refuse_folder(text, "an encoder with a text tower", ("encoder", "other_vlm", "model", "unknown"))
        return _load_transformers(text, text, dtype)
    if kind == "hf" and name:
        with hub_or_cache(text):
            return _load_transformers(name, text, dtype)
    model, _, tag = name.partition("/")
    if kind == "open_clip" and tag:
        with hub_or_cache(text):
            return _load_open_clip(model, tag, text, dtype)
    raise UserError(
        f"{text!r} names no encoder with a text tower; write hf:NAME or a folder ({', '.join(TEXT_TOWERS)}), or open_clip:MODEL/TAG"
    )


def has_text_tower(source: str | os.PathLike) -> bool:
    """Whether `load_image_text` knows the kind of model that `source` names; nothing but a config
    is read."""
    text = os.fspath(source)
    kind, _, name = text.partition(":")
    if os.path.isdir(text) or kind == "hf":
        place = text if os.path.isdir(text) else name
        return not (Path(place) / "encoder.json").is_file() and read_config(place).model_type in TEXT_TOWERS
    return kind == "open_clip"


def _load_transformers(name: str, source: str, dtype: torch.dtype) -> TransformersImageText:
    config = read_config(name)
    if config.model_type not in TEXT_TOWERS:
        raise UserError(
            f"{name} is a {config.model_type}, which has no text tower; those that have one: {', '.join(TEXT_TOWERS)}, open_clip:MODEL/TAG"
        )
    try:
        model, report = AutoModel.from_pretrained(
            name, config=config, dtype=dtype, output_loading_info=True, trust_remote_code=False
        )
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except Exception as error:  # a broken checkpoint raises whatever its reader does
        raise _unreadable(name, error) from None
    missing = sorted(report["missing_keys"]) + sorted(str(key) for key in report["mismatched_keys"])
    if missing:
        raise UserError(
            f"{name} lacks {len(missing)} weights of a {type(model).__name__}, such as {missing[0]}; give a whole checkpoint"
        )
    if (
        len(tokenizer) < config.text_config.vocab_size / 2
    ):  # without its files the library makes one that knows no word, and says nothing
        raise UserError(
            f"{name} has a tokenizer of {len(tokenizer)} tokens for a text tower of {config.text_config.vocab_size}; add its tokenizer.json"
        )
    return TransformersImageText(model, tokenizer, read_transform(name), source)


def _load_open_clip(name: str, tag: str, source: str, dtype: torch.dtype) -> OpenClipImageText:
    model = load_whole_model(name, tag)
    try:
        tokenizer = import_open_clip().get_tokenizer(name)
    except Exception as error:  # many tokenizers come from the Hub
        raise _unreadable(source, error) from None
    return OpenClipImageText(
        model.to(dtype), tokenizer, transform_from_preprocess(model.visual.preprocess_cfg), source
    )


def _unreadable(name: str, error: Exception) -> UserError:
    reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return UserError(
        f"{name} cannot be loaded ({reason}); it needs config, weights, tokenizer and image processor"
    )
