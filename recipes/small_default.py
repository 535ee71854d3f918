"""The small default: untrained models for 64 px images, fused, with a tokenizer of the data's own words. They stand in where no model is named.

Weights of so narrow models start at a standard deviation near 1 / sqrt(width), not at the 0.02 of large ones: with 0.02 nothing but colours was learnt in the
minutes that this is made for.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch

from encoders.base import Encoder
from encoders.preprocess import ImageTransform
from encoders.transformers_encoder import build_transformers
from fusion import assemble_vlm, fuse_encoders
from fusion.tiny import tiny_language_model
from vision_core.corpus_tokenizer import corpus_tokenizer
from vision_core.randomness import seed_of

SIDE, INITIALIZER_RANGE = 64, 0.08
VIT = {
    "hidden_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 192, "image_size": SIDE, "patch_size": 8,
    "initializer_range": INITIALIZER_RANGE,
}  # fmt: skip
ENCODERS = {"dinov2": VIT | {"mlp_ratio": 2, "layerscale_value": 1.0}, "siglip_vision_model": VIT}
LANGUAGE_MODEL = {
    "hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32,
    "initializer_range": INITIALIZER_RANGE, "tie_word_embeddings": True,
}  # fmt: skip
ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
CHAT_TEMPLATE = (
    "{%- for message in messages -%}{{ '<|' + message['role'] + '|>' + message['content'] + eos_token }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|assistant|>' }}{%- endif -%}"
)


def small_encoders(seed: int) -> list[Encoder]:
    """Two untrained ViTs, of the kinds that know where and what."""
    encoders = []
    for kind, config in ENCODERS.items():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of(seed, "small encoder", kind))
            transform = ImageTransform((SIDE, SIDE))
            encoders.append(build_transformers(config | {"model_type": kind}, transform, dtype=torch.float32, untrained=True))
    return encoders


def write_small_default(folder: Path, texts: Iterable[str], seed: int) -> None:
    """The fused model and its processor, for data with words like those of `texts`."""
    tokenizer = corpus_tokenizer(texts, ROLES, CHAT_TEMPLATE)
    vision_model, _ = fuse_encoders(
        small_encoders(seed),
        hidden_size=LANGUAGE_MODEL["hidden_size"],
        connector_options={"width": 96, "num_heads": 4, "depth": 2},
        seed=seed,
    )
    language_model, _ = tiny_language_model("qwen3", seed, tokenizer, **LANGUAGE_MODEL)
    model, processor = assemble_vlm(vision_model, language_model, tokenizer, num_sva_layers=2, sva_stride=2, seed=seed)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
