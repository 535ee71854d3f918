"""Encoders with a text tower: images and texts as vectors of one space."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModel, AutoTokenizer

from encoders.adapters.image_processors import read_transform
from encoders.adapters.open_clip_encoder import import_open_clip, load_both_towers, transform_from_preprocess
from encoders.adapters.transformers_encoder import TransformersEncoder, read_config, refuse_missing_weights
from encoders.preprocess import ImageTransform, Preprocess
from encoders.saved import is_saved_encoder
from encoders.source_text import FOLDER, split_kind, split_source
from vision_core.errors import UserError, first_line
from vision_core.hub import hub_or_cache
from vision_core.runs.folder_kinds import refuse_folder


@dataclass(frozen=True)
class TextTower:
    """How a family of transformers reads texts.

    Attributes:
        padded: whether texts are made lower case and filled up to the full length, and the padding
            is attended to, as SigLIP and SigLIP 2 were trained (fixed-resolution SigLIP 2 has a
            tokenizer that leaves upper case alone, and then loses accuracy). Otherwise texts are as
            long as the longest, and the padding is masked.
        image_projection: the model's attribute behind the pooled vision tower, or None.
    """

    padded: bool
    image_projection: str | None


TEXT_TOWERS = {
    "siglip": TextTower(padded=True, image_projection=None),
    "siglip2": TextTower(padded=True, image_projection=None),
    "clip": TextTower(padded=False, image_projection="visual_projection"),
    "metaclip_2": TextTower(padded=False, image_projection="visual_projection"),
}

# folders of these kinds may hold a text tower, or are refused here with a message of their own
TEXT_TOWER_FOLDERS = ("encoder", "other_vlm", "model", "unknown")


class ImageTextModel(nn.Module):
    """A frozen model that makes images and texts vectors of length 1.

    Attributes:
        transform: the published preprocessing of images.
        logit_scale, logit_bias: the model's logit of a pair is logit_scale * cosine + logit_bias
            (bias 0 where it has none).
        source: what the model was loaded from, for people.
    """

    def __init__(
        self, transform: ImageTransform, logit_scale: Tensor, logit_bias: Tensor | None, source: str
    ) -> None:
        super().__init__()
        self.transform = transform
        self.source = source
        self.logit_scale = logit_scale.float().exp().item()
        self.logit_bias = 0.0 if logit_bias is None else logit_bias.float().item()

    @torch.no_grad()
    def encode_images(self, pixel_values: Tensor) -> Tensor:
        """The vectors `[B, D]` of images `[B, 3, H, W]` that are preprocessed as `transform` says;
        of length 1, float32. Raises UserError for sizes that the model cannot take."""
        vectors = self.image_vectors(pixel_values.to(self.device, self.dtype))
        return F.normalize(vectors.float(), dim=-1)

    @torch.no_grad()
    def encode_texts(self, texts: Sequence[str], batch_size: int = 256) -> Tensor:
        """The vectors `[n, D]` of n texts, which are truncated to the length that the model was
        trained with; of length 1, float32."""
        vectors = []
        for start in range(0, len(texts), batch_size):
            batch = list(texts[start : start + batch_size])
            vectors.append(self.text_vectors(batch).float())
        return F.normalize(torch.cat(vectors), dim=-1)

    def image_vectors(self, pixel_values: Tensor) -> Tensor:
        """The vectors `[B, D]` as the library gives them."""
        raise NotImplementedError

    def text_vectors(self, texts: list[str]) -> Tensor:
        """The vectors `[n, D]` as the library gives them."""
        raise NotImplementedError

    @property
    def dtype(self) -> torch.dtype:
        """The type of the weights."""
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(self.parameters()).device


class TransformersImageText(ImageTextModel):
    """A `SiglipModel`, `Siglip2Model`, `CLIPModel` or `MetaClip2Model` with its tokenizer."""

    def __init__(self, model: nn.Module, tokenizer: Any, transform: ImageTransform, source: str = "") -> None:
        super().__init__(transform, model.logit_scale, getattr(model, "logit_bias", None), source)
        self.model = model
        self.tokenizer = tokenizer
        self.tower = TEXT_TOWERS[model.config.model_type]
        self.vision = TransformersEncoder(model.vision_model, transform, source=source)
        self.requires_grad_(False).eval()

    def image_vectors(self, pixel_values: Tensor) -> Tensor:
        pooled = self.vision(pixel_values).pooled
        if self.tower.image_projection is None:
            return pooled
        return getattr(self.model, self.tower.image_projection)(pooled)

    def text_vectors(self, texts: list[str]) -> Tensor:
        padding: bool | str = True
        wanted = ["input_ids", "attention_mask"]
        if self.tower.padded:
            texts = [text.lower() for text in texts]
            padding = "max_length"
            wanted = ["input_ids"]
        tokens = self.tokenizer(
            texts,
            padding=padding,
            padding_side="right",
            truncation=True,
            max_length=self.model.config.text_config.max_position_embeddings,
            return_tensors="pt",
        )
        inputs = {name: tokens[name].to(self.device) for name in wanted}
        return self.model.get_text_features(**inputs).pooler_output


class OpenClipImageText(ImageTextModel):
    """Both towers of an open_clip model with its tokenizer."""

    def __init__(self, model: nn.Module, tokenizer: Any, transform: ImageTransform, source: str = "") -> None:
        super().__init__(transform, model.logit_scale, model.logit_bias, source)
        self.model = model
        self.tokenizer = tokenizer
        self.requires_grad_(False).eval()

    def image_vectors(self, pixel_values: Tensor) -> Tensor:
        given = tuple(pixel_values.shape[-2:])
        height, width = self.transform.size
        if given != (height, width):
            raise UserError(
                f"{self.source}: images must be {height} x {width} pixels, not {given[0]} x {given[1]}"
            )
        return self.model.encode_image(pixel_values)

    def text_vectors(self, texts: list[str]) -> Tensor:
        return self.model.encode_text(self.tokenizer(texts).to(self.device))


def load_image_text(
    source: str | os.PathLike,
    *,
    dtype: torch.dtype = torch.float32,
    preprocess: Preprocess | None = None,
) -> ImageTextModel:
    """The image-text model that `source` names, frozen, on the CPU.

    Args:
        source: `hf:NAME` or a folder (SigLIP, SigLIP 2 with fixed resolution or NaFlex, CLIP,
            MetaCLIP 2), or `open_clip:MODEL/TAG`, where the tag may be a .safetensors file. The
            option `?preprocess=whole` may follow.
        dtype: of the weights; embeddings are float32.
        preprocess: see `ImageTransform`; default: published.

    Raises:
        UserError: an encoder without a text tower, a checkpoint without some of its parts, an
            unknown name or option, `preprocess` that is given twice.
    """
    text, options = split_source(os.fspath(source))
    way = options.pop("preprocess", None)
    if options:
        unused = next(iter(options))
        raise UserError(f"{source}: {unused} does not apply where both towers are loaded; leave it out")
    if way is not None and preprocess is not None:
        raise UserError(f"{source}: preprocess is also given as an argument; give it once")
    model = _load(text, dtype)
    model.transform = replace(model.transform, preprocess=way or preprocess or "published")
    return model


def _load(source: str, dtype: torch.dtype) -> ImageTextModel:
    kind, name = split_kind(source)
    if kind == FOLDER:
        refuse_folder(name, "an encoder with a text tower", TEXT_TOWER_FOLDERS)
    if kind in (FOLDER, "hf"):
        with hub_or_cache(name, source):
            return _load_transformers(name, source, dtype)
    model, _, tag = name.partition("/")
    if kind == "open_clip" and tag:
        with hub_or_cache(source):
            return _load_open_clip(model, tag, source, dtype)
    raise UserError(
        f"{source!r} names no encoder with a text tower; "
        f"write hf:NAME or a folder ({', '.join(TEXT_TOWERS)}), or open_clip:MODEL/TAG"
    )


def has_text_tower(source: str | os.PathLike) -> bool:
    """Whether `load_image_text` knows the kind of model that `source` names. Only a config is
    read."""
    text, _ = split_source(os.fspath(source))
    kind, name = split_kind(text)
    if kind in (FOLDER, "hf"):
        return not is_saved_encoder(name) and read_config(name).model_type in TEXT_TOWERS
    return kind == "open_clip"


def _load_transformers(name: str, source: str, dtype: torch.dtype) -> TransformersImageText:
    config = read_config(name)
    if config.model_type not in TEXT_TOWERS:
        raise UserError(
            f"{name} is a {config.model_type}, which has no text tower; "
            f"those that have one: {', '.join(TEXT_TOWERS)}, open_clip:MODEL/TAG"
        )
    try:
        model, report = AutoModel.from_pretrained(
            name, config=config, dtype=dtype, output_loading_info=True, trust_remote_code=False
        )
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except Exception as error:  # a broken checkpoint raises whatever its reader does
        raise _unreadable(name, error) from None
    refuse_missing_weights(report, name, type(model).__name__)
    vocab_size = config.text_config.vocab_size
    # without a tokenizer's files transformers makes one that knows no word, and says nothing
    if len(tokenizer) < vocab_size / 2:
        raise UserError(
            f"{name} has a tokenizer of {len(tokenizer)} tokens for a text tower of {vocab_size}; "
            "add its tokenizer.json"
        )
    return TransformersImageText(model, tokenizer, read_transform(name), source)


def _load_open_clip(name: str, tag: str, source: str, dtype: torch.dtype) -> OpenClipImageText:
    model = load_both_towers(name, tag)
    try:
        tokenizer = import_open_clip().get_tokenizer(name)
    except Exception as error:  # many tokenizers come from the Hub
        raise _unreadable(source, error) from None
    transform = transform_from_preprocess(model.visual.preprocess_cfg)
    return OpenClipImageText(model.to(dtype), tokenizer, transform, source)


def _unreadable(name: str, error: Exception) -> UserError:
    reason = first_line(error)
    return UserError(
        f"{name} cannot be loaded ({reason}); it needs config, weights, tokenizer and image processor"
    )
